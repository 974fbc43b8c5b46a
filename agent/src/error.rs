// SPDX-License-Identifier: Apache-2.0

//! What a request can fail with. The codes are the protocol's; the host maps them one to
//! one onto containerd's. A message says what failed and why, in one sentence.

use std::fmt::Display;

use husk_protocol::agent::error::Code;

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    pub code: Code,
    pub message: String,
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::INTERNAL, message)
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::INVALID_ARGUMENT, message)
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Code::NOT_FOUND, message)
    }

    pub fn exists(message: impl Into<String>) -> Self {
        Self::new(Code::ALREADY_EXISTS, message)
    }

    pub fn precondition(message: impl Into<String>) -> Self {
        Self::new(Code::FAILED_PRECONDITION, message)
    }

    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Code::UNAVAILABLE, message)
    }

    /// The process that a request names has ended, or never was.
    pub fn finished() -> Self {
        Self::not_found("process already finished")
    }
}

/// Says what was being done when something failed.
pub trait Doing<T> {
    /// Turns the failure into an internal error that reads `cannot <what>: <why>`.
    fn doing(self, what: impl Display) -> Result<T>;
}

impl<T, E: Display> Doing<T> for std::result::Result<T, E> {
    fn doing(self, what: impl Display) -> Result<T> {
        self.map_err(|why| Error::internal(format!("cannot {what}: {why}")))
    }
}
