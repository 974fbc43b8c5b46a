// SPDX-License-Identifier: Apache-2.0

//! One call of gRPC over a unix socket: a POST over HTTP/2 whose body is the message behind a
//! five-byte head, and whose trailers say how it went.

use std::env;
use std::fmt;
use std::time::Duration;

use http::HeaderMap;
use protobuf::Message;
use tokio::net::UnixStream;

/// gRPC's codes that cases look for.
pub const NOT_FOUND: u32 = 5;
pub const DEADLINE_EXCEEDED: u32 = 4;
/// Also what a call comes to that containerd could not be asked, or did not live to answer.
pub const UNAVAILABLE: u32 = 14;

/// A call that was answered with an error.
#[derive(Debug, Clone)]
pub struct Refusal {
    pub code: u32,
    pub message: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "code {}: {}", self.code, self.message)
    }
}

/// Calls `service`/`method` of containerd on a connection of its own. Panics when there is no
/// answer within `limit`: what takes longer hangs.
pub fn call<A: Message>(
    service: &str,
    method: &str,
    request: &impl Message,
    limit: Duration,
) -> Result<A, Refusal> {
    let body = request.write_to_bytes().expect("a message");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime for the call");
    let path = format!("/runtime.v1.{service}/{method}");
    let answered =
        runtime.block_on(async { tokio::time::timeout(limit, unary(&path, body)).await });
    let answer = answered.unwrap_or_else(|_| panic!("no answer to {method} within {limit:?}"));
    let answer = answer.unwrap_or_else(|error| {
        Err(Refusal { code: UNAVAILABLE, message: format!("{method} was not answered: {error}") })
    });
    answer.map(|bytes| A::parse_from_bytes(&bytes).expect("the answer's message"))
}

async fn unary(
    path: &str,
    message: Vec<u8>,
) -> Result<Result<Vec<u8>, Refusal>, Box<dyn std::error::Error>> {
    let stream = UnixStream::connect(env::var("CONTAINERD_ADDRESS")?).await?;
    let (client, connection) = h2::client::handshake(stream).await?;
    tokio::spawn(connection);
    let request = http::Request::post(format!("http://localhost{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())?;
    let (answer, mut body) = client.ready().await?.send_request(request, false)?;
    let mut framed = vec![0];
    framed.extend(u32::try_from(message.len())?.to_be_bytes());
    framed.extend(message);
    body.send_data(framed.into(), true)?;

    let (head, mut body) = answer.await?.into_parts();
    let mut bytes = Vec::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        bytes.extend_from_slice(&chunk);
    }
    // An error without a message has its trailers in the head.
    let trailers = body.trailers().await?.unwrap_or(head.headers);
    let text = |name| header(&trailers, name);
    Ok(match text("grpc-status").parse()? {
        0 => Ok(bytes.split_off(5.min(bytes.len()))),
        code => Err(Refusal { code, message: text("grpc-message") }),
    })
}

fn header(headers: &HeaderMap, name: &str) -> String {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    value.unwrap_or_default().to_owned()
}
