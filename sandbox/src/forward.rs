// SPDX-License-Identifier: Apache-2.0

//! Port forwarding. containerd's CRI plugin enters a pod's network namespace on the host and
//! connects to a port of localhost there; but the server is in the guest. So every such
//! connection is taken by one socket of ours in the namespace (`steering`), the guest connects
//! to the same port of its own localhost, and the two are joined. A port that nobody in the
//! guest listens on is known only after the client is connected: its connection is reset.

mod steering;

use std::net::{self, Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use husk_protocol::agent::{Dial, request::Verb};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, SockaddrIn6, bind, listen, setsockopt,
    socket, sockopt,
};
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::agent::{Agent, done};
use crate::error::{Error, IoContext};
use crate::network::Namespace;
use crate::streams::Streams;
use steering::Steering;

/// Connections of a pod at one time; further ones wait in the backlog.
const MAX_CONNECTIONS: usize = 128;

const BACKLOG: i32 = 128;

/// How long the guest may take to connect.
const DIAL_LIMIT: Duration = Duration::from_secs(30);

/// Pause after a failed accept: most often there are too many descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Bytes that a connection holds in each direction.
const BUFFER: usize = 16 << 10;

/// The ports of a pod's localhost. Dropping it ends all connections.
#[derive(Debug)]
pub struct PortForwarding {
    listener: TcpListener,
    _steering: Steering,
    agent: Agent,
    streams: Streams,
}

impl PortForwarding {
    /// From now on the namespace's localhost is the guest's. Has to be called within a runtime.
    pub fn open(
        namespace: &Namespace,
        agent: Agent,
        streams: Streams,
    ) -> Result<PortForwarding, Error> {
        let listener =
            namespace.within(|| listener().context(|| format!("cannot listen in {namespace}")))?;
        let steering = Steering::new(&listener, namespace).context(|| {
            "cannot attach an eBPF program to the network namespace; it takes a kernel with \
             CONFIG_BPF_SYSCALL and root with CAP_SYS_ADMIN"
                .to_owned()
        })?;
        let listener = TcpListener::from_std(net::TcpListener::from(listener))
            .context(|| "cannot watch a socket".to_owned())?;
        Ok(PortForwarding { listener, _steering: steering, agent, streams })
    }

    /// Serves until it is dropped.
    pub async fn run(self) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                // One that has ended makes room.
                Some(_) = connections.join_next() => {}
                accepted = self.listener.accept(), if connections.len() < MAX_CONNECTIONS => {
                    match accepted {
                        Ok((client, _)) => {
                            let (agent, streams) = (self.agent.clone(), self.streams.clone());
                            connections.spawn(serve(client, agent, streams));
                        }
                        Err(_) => sleep(ACCEPT_PAUSE).await,
                    }
                }
            }
        }
    }
}

/// Joins a client to the guest's server of the port that it asked for, to the end of both
/// directions.
async fn serve(mut client: TcpStream, agent: Agent, streams: Streams) {
    let joined = async {
        let mut server = dial(&client, agent, streams).await?;
        // Small pieces wait for nobody: who wrote them has decided about that.
        client.set_nodelay(true).context(|| "cannot set TCP_NODELAY".to_owned())?;
        copy_bidirectional_with_sizes(&mut client, &mut server, BUFFER, BUFFER)
            .await
            .context(|| "the connection failed".to_owned())
    };
    if joined.await.is_err() {
        // What is closed now is reset: that tells it from an end.
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        let _ = setsockopt(&client, sockopt::Linger, &linger);
    }
}

/// Has the guest connect to the port of localhost that the client is connected to.
async fn dial(client: &TcpStream, agent: Agent, streams: Streams) -> Result<UnixStream, Error> {
    let asked = client.local_addr().context(|| "cannot tell the port".to_owned())?;
    if !asked.ip().to_canonical().is_loopback() {
        return Err(Error::invalid("not localhost, but the port of the listening socket itself"));
    }
    let expected = streams.expect();
    let verb = Verb::Dial(Dial {
        port: asked.port().into(),
        stream_port: expected.port(),
        ..Default::default()
    });
    let dialed = async {
        done(agent.call(verb).await?)?;
        expected.connected().await
    };
    let stream = timeout(DIAL_LIMIT, dialed)
        .await
        .map_err(|_| Error::unavailable("the guest does not connect"))??;
    UnixStream::from_std(stream).context(|| "cannot watch a stream".to_owned())
}

/// A socket that listens in the thread's network namespace, for both families where there are
/// two. Its own port is of no meaning.
fn listener() -> Result<OwnedFd, Errno> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let open = |family| socket(family, SockType::Stream, flags, None);
    let listener = match open(AddressFamily::Inet6) {
        Ok(listener) => {
            setsockopt(&listener, sockopt::Ipv6V6Only, &false)?;
            let any = SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, 0, 0, 0);
            bind(listener.as_raw_fd(), &SockaddrIn6::from(any))?;
            listener
        }
        // A kernel without IPv6.
        Err(Errno::EAFNOSUPPORT) => {
            let listener = open(AddressFamily::Inet)?;
            let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
            bind(listener.as_raw_fd(), &SockaddrIn::from(any))?;
            listener
        }
        Err(error) => return Err(error),
    };
    listen(&listener, Backlog::new(BACKLOG)?)?;
    Ok(listener)
}
