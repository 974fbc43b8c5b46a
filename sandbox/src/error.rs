// SPDX-License-Identifier: Apache-2.0

//! The one error type of this crate: a code that maps one to one onto containerd's codes,
//! and a sentence for the user. The guest's typed errors arrive here too.

use husk_protocol::agent;

/// What kind of failure it was; containerd and the guest use the same list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    Internal,
    InvalidArgument,
    NotFound,
    AlreadyExists,
    FailedPrecondition,
    Unimplemented,
    Unavailable,
}

/// A failure with what failed, why, and where possible what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    pub code: Code,
    pub message: String,
}

/// Longest text that is taken over from the guest, in bytes.
const MAX_GUEST_TEXT: usize = 4096;

impl Error {
    pub fn new(code: Code, message: impl Into<String>) -> Error {
        Error { code, message: message.into() }
    }

    pub fn internal(message: impl Into<String>) -> Error {
        Error::new(Code::Internal, message)
    }

    pub fn invalid(message: impl Into<String>) -> Error {
        Error::new(Code::InvalidArgument, message)
    }

    pub fn not_found(message: impl Into<String>) -> Error {
        Error::new(Code::NotFound, message)
    }

    pub fn precondition(message: impl Into<String>) -> Error {
        Error::new(Code::FailedPrecondition, message)
    }

    pub fn unavailable(message: impl Into<String>) -> Error {
        Error::new(Code::Unavailable, message)
    }

    /// The same failure, with what it made impossible in front.
    pub fn context(mut self, what: impl std::fmt::Display) -> Error {
        self.message = format!("{what}: {}", self.message);
        self
    }
}

/// Says what an operating system call was for.
pub trait IoContext<T> {
    /// The error as [`Code::Internal`], with `what` in front of the system's text.
    fn context(self, what: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T, E: std::fmt::Display> IoContext<T> for Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|error| Error::internal(format!("{}: {error}", what())))
    }
}

impl From<agent::Error> for Error {
    fn from(error: agent::Error) -> Error {
        use agent::error::Code as Guest;
        let code = match error.code.enum_value_or(Guest::INTERNAL) {
            Guest::INTERNAL => Code::Internal,
            Guest::INVALID_ARGUMENT => Code::InvalidArgument,
            Guest::NOT_FOUND => Code::NotFound,
            Guest::ALREADY_EXISTS => Code::AlreadyExists,
            Guest::FAILED_PRECONDITION => Code::FailedPrecondition,
            Guest::UNIMPLEMENTED => Code::Unimplemented,
            Guest::UNAVAILABLE => Code::Unavailable,
        };
        Error { code, message: clip(error.message, MAX_GUEST_TEXT) }
    }
}

/// At most `max` bytes of a text that somebody else wrote, cut between characters.
pub fn clip(mut text: String, max: usize) -> String {
    if text.len() > max {
        let mut end = max;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_code_that_nobody_knows_is_internal() {
        let error = agent::Error {
            code: protobuf::EnumOrUnknown::from_i32(99),
            message: "?".into(),
            ..Default::default()
        };
        assert_eq!(Error::from(error).code, Code::Internal);
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(clip("aéé".into(), 4), "aé");
        assert_eq!(clip("abc".into(), 3), "abc");
    }
}
