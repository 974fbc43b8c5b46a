// SPDX-License-Identifier: Apache-2.0

//! Errors and times as containerd wants them.

use std::time::Duration;

use husk_sandbox::{Code, Error};
use protobuf::well_known_types::timestamp::Timestamp;

/// The error with its code, which containerd maps to its own.
pub fn to_ttrpc(error: Error) -> ttrpc::Error {
    let code = match error.code {
        Code::Internal => ttrpc::Code::INTERNAL,
        Code::InvalidArgument => ttrpc::Code::INVALID_ARGUMENT,
        Code::NotFound => ttrpc::Code::NOT_FOUND,
        Code::AlreadyExists => ttrpc::Code::ALREADY_EXISTS,
        Code::FailedPrecondition => ttrpc::Code::FAILED_PRECONDITION,
        Code::Unimplemented => ttrpc::Code::UNIMPLEMENTED,
        Code::Unavailable => ttrpc::Code::UNAVAILABLE,
    };
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, error.message))
}

/// A time since 1970.
pub fn timestamp(time: Duration) -> Timestamp {
    Timestamp {
        seconds: time.as_secs() as i64,
        nanos: time.subsec_nanos() as i32,
        ..Default::default()
    }
}
