//! The libp2p side of a link: per connection, the dialler opens a vote and a bulk stream and the listener takes them.
//!
//! A handler of our own, because `libp2p-stream` opens a stream on a random one of a peer's connections, does not
//! say on which connection a stream came in, and drops streams when two come at once. Here each stream belongs to
//! its connection.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    future::{Ready, ready},
    io,
    net::IpAddr,
    task::{Context, Poll},
};

use libp2p::{
    InboundUpgrade, Multiaddr, OutboundUpgrade, PeerId, Stream, StreamProtocol,
    core::{Endpoint, UpgradeInfo, transport::PortUse},
    swarm::{
        ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm, ListenFailure,
        NetworkBehaviour, StreamUpgradeError, SubstreamProtocol, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
        handler::{ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound},
    },
};

use super::swarm::socket_addr;

const VOTE: StreamProtocol = StreamProtocol::new("/hp/vote/1");
const BULK: StreamProtocol = StreamProtocol::new("/hp/bulk/1");

/// Connections that came in and have not yet proven a key. Further ones are closed at once.
const PENDING_INBOUND_MAX: usize = 256;

/// The same, from one address. (A whole test network may share one.)
const PENDING_INBOUND_PER_IP_MAX: usize = 64;

/// The streams of one connection.
#[derive(Debug)]
pub(super) struct Streams {
    pub(super) vote: Stream,
    pub(super) bulk: Stream,
}

/// What a connection reports. Once each at most.
#[derive(Debug)]
pub(super) enum Report {
    /// Both streams are there.
    Ready(Box<Streams>),
    /// There will be no streams, for this reason.
    Failed(String),
}

/// Report of one connection.
#[derive(Debug)]
pub(super) struct Reported {
    pub(super) connection: ConnectionId,
    pub(super) report: Report,
}

/// See the module.
#[derive(Default)]
pub(super) struct Behaviour {
    pending: HashMap<ConnectionId, IpAddr>,
    reports: VecDeque<Reported>,
}

#[derive(Debug, thiserror::Error)]
#[error("too many connections that have not proven a key yet")]
struct TooManyPending;

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Reported;

    fn handle_pending_inbound_connection(
        &mut self,
        connection: ConnectionId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        let Some(ip) = socket_addr(remote).map(|addr| addr.ip()) else { return Ok(()) };
        let same = self.pending.values().filter(|other| **other == ip).count();
        if self.pending.len() >= PENDING_INBOUND_MAX || same >= PENDING_INBOUND_PER_IP_MAX {
            return Err(ConnectionDenied::new(TooManyPending));
        }
        self.pending.insert(connection, ip);
        Ok(())
    }

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.pending.remove(&connection);
        Ok(Handler::new(false))
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::new(true))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        if let FromSwarm::ListenFailure(ListenFailure { connection_id, .. }) = event {
            self.pending.remove(&connection_id);
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, connection: ConnectionId, report: THandlerOutEvent<Self>) {
        self.reports.push_back(Reported { connection, report });
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        // No waker: the swarm polls the behaviour again after each handler event, the only source of reports.
        match self.reports.pop_front() {
            Some(reported) => Poll::Ready(ToSwarm::GenerateEvent(reported)),
            None => Poll::Pending,
        }
    }
}

/// One connection's streams in the making.
pub(super) struct Handler {
    to_open: VecDeque<StreamProtocol>,
    accepts: bool,
    vote: Option<Stream>,
    bulk: Option<Stream>,
    report: Option<Report>,
    reported: bool,
}

impl Handler {
    fn new(dialler: bool) -> Handler {
        let to_open = if dialler { VecDeque::from([VOTE, BULK]) } else { VecDeque::new() };
        Handler { to_open, accepts: !dialler, vote: None, bulk: None, report: None, reported: false }
    }

    fn keep(&mut self, stream: Stream, protocol: &StreamProtocol) {
        if self.reported || self.report.is_some() {
            return; // A stream too many: dropping it resets it.
        }
        let place = if *protocol == VOTE { &mut self.vote } else { &mut self.bulk };
        if place.replace(stream).is_some() {
            self.report = Some(Report::Failed(format!("the peer opened {protocol} twice")));
        } else if let (Some(_), Some(_)) = (&self.vote, &self.bulk)
            && let (Some(vote), Some(bulk)) = (self.vote.take(), self.bulk.take())
        {
            self.report = Some(Report::Ready(Box::new(Streams { vote, bulk })));
        }
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Infallible;
    type ToBehaviour = Report;
    type InboundProtocol = Upgrade;
    type OutboundProtocol = Upgrade;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<Upgrade> {
        let protocols = if self.accepts { vec![VOTE, BULK] } else { Vec::new() };
        SubstreamProtocol::new(Upgrade(protocols), ())
    }

    /// Connections are closed by whoever keeps the links, never for being idle.
    fn connection_keep_alive(&self) -> bool {
        true
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ConnectionHandlerEvent<Upgrade, (), Report>> {
        // No waker: all state changes come from `on_connection_event`, after which the handler is polled again.
        if let Some(protocol) = self.to_open.pop_front() {
            let protocol = SubstreamProtocol::new(Upgrade(vec![protocol]), ());
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
        }
        match self.report.take() {
            Some(report) if !self.reported => {
                self.reported = true;
                Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(report))
            }
            _ => Poll::Pending,
        }
    }

    fn on_behaviour_event(&mut self, event: Infallible) {
        match event {}
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, Upgrade, Upgrade>) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol: (stream, name), .. })
            | ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol: (stream, name), .. }) => {
                self.keep(stream, &name);
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { error, .. }) => {
                let reason = match error {
                    StreamUpgradeError::Timeout => "the peer did not answer the opening of a stream".to_owned(),
                    StreamUpgradeError::NegotiationFailed => "the peer is no Hot Pocket node".to_owned(),
                    StreamUpgradeError::Io(err) => broken(&err),
                    StreamUpgradeError::Apply(never) => match never {},
                };
                self.report.get_or_insert(Report::Failed(reason));
            }
            _ => {}
        }
    }
}

fn broken(err: &io::Error) -> String {
    format!("the connection broke: {err}")
}

/// Streams are used as they are; only their protocol's name is kept.
pub(super) struct Upgrade(Vec<StreamProtocol>);

impl UpgradeInfo for Upgrade {
    type Info = StreamProtocol;
    type InfoIter = std::vec::IntoIter<StreamProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        self.0.clone().into_iter()
    }
}

impl InboundUpgrade<Stream> for Upgrade {
    type Output = (Stream, StreamProtocol);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_inbound(self, stream: Stream, protocol: StreamProtocol) -> Self::Future {
        ready(Ok((stream, protocol)))
    }
}

impl OutboundUpgrade<Stream> for Upgrade {
    type Output = (Stream, StreamProtocol);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_outbound(self, stream: Stream, protocol: StreamProtocol) -> Self::Future {
        ready(Ok((stream, protocol)))
    }
}
