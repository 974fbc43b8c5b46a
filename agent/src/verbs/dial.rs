// SPDX-License-Identifier: Apache-2.0

//! Dial: somebody on the host connects to a server in the guest, by a port of localhost.

use std::net::{Ipv4Addr, Ipv6Addr};

use husk_protocol::agent::Dial;
use husk_protocol::agent::response::Result as Outcome;
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::TcpStream;

use crate::agent::Agent;
use crate::error::{Doing, Error, Result};
use crate::verbs::done;

/// Bytes that a connection holds in each direction.
const BUFFER: usize = 16 << 10;

pub async fn dial(agent: &Agent, request: &Dial) -> Result<Outcome> {
    let port = u16::try_from(request.port).ok().filter(|&port| port != 0);
    let port = port.ok_or_else(|| Error::invalid(format!("{} is no port", request.port)))?;
    let mut server = connect(port).await?;
    let mut host = agent.host.dial(request.stream_port).await.doing(format!(
        "connect a client of port {port} to port {} of the host",
        request.stream_port
    ))?;
    tokio::task::spawn_local(async move {
        // What failed, both ends see for themselves.
        let _ = copy_bidirectional_with_sizes(&mut server, &mut host, BUFFER, BUFFER).await;
    });
    Ok(done())
}

/// Servers may listen on one family only.
async fn connect(port: u16) -> Result<TcpStream> {
    let stream = match TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
        Ok(stream) => stream,
        Err(ipv4) => TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await.map_err(|ipv6| {
            Error::unavailable(format!("nobody listens on port {port}: IPv4: {ipv4}; IPv6: {ipv6}"))
        })?,
    };
    stream.set_nodelay(true).doing("set TCP_NODELAY")?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use husk_protocol::agent::error::Code;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, UnixListener};
    use tokio::task::LocalSet;

    use super::*;
    use crate::host::Host;
    use crate::outbox::queue;

    const STREAM_PORT: u32 = 77;

    fn request(port: u32) -> Dial {
        Dial { port, stream_port: STREAM_PORT, ..Default::default() }
    }

    /// Runs a test with an agent and with the host's listener.
    fn with_agent<F: Future<Output = ()>>(test: impl FnOnce(Agent, UnixListener) -> F) {
        let directory = tempfile::tempdir().expect("directory");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        LocalSet::new().block_on(&runtime.expect("runtime"), async {
            let path = directory.path().join(format!("port_{STREAM_PORT}"));
            let host = UnixListener::bind(path).expect("bind");
            let agent = Agent::new(Host::Directory(directory.path().into()), queue().0);
            let limit = std::time::Duration::from_secs(10);
            tokio::time::timeout(limit, test(agent, host)).await.expect("the test hangs");
        });
    }

    #[test]
    fn a_server_of_either_family_is_reached_and_ends_are_passed_on() {
        with_agent(|agent, host| async move {
            for address in ["127.0.0.1:0", "[::1]:0"] {
                let server = TcpListener::bind(address).await.expect(address);
                let port = server.local_addr().expect("address").port();
                assert_eq!(dial(&agent, &request(port.into())).await, Ok(done()));
                let (mut client, _) = host.accept().await.expect("the host's side");
                let (mut server, _) = server.accept().await.expect("the server's side");
                client.write_all(b"asked").await.expect("write");
                client.shutdown().await.expect("shutdown");
                let mut said = String::new();
                server.read_to_string(&mut said).await.expect("read");
                assert_eq!(said, "asked", "{address}");
                server.write_all(b"answered").await.expect("write");
                drop(server);
                client.read_to_string(&mut said).await.expect("read");
                assert_eq!(said, "askedanswered", "{address}");
            }
        });
    }

    #[test]
    fn a_port_of_nobody_is_refused_by_its_number() {
        with_agent(|agent, _host| async move {
            let free = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            let port = free.local_addr().expect("address").port();
            drop(free);
            let error = dial(&agent, &request(port.into())).await.expect_err("nobody");
            assert_eq!(error.code, Code::UNAVAILABLE);
            assert!(error.message.contains(&port.to_string()), "{error}");
            for port in [0, 65536] {
                let error = dial(&agent, &request(port)).await.expect_err("no port");
                assert_eq!(error.code, Code::INVALID_ARGUMENT);
            }
        });
    }
}
