//! Where the bytes go that a contract writes: logs, users, the party line; and which limit they go over.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::{
    Limits, NplOut, RunSpec,
    log::{LogQueue, Place, Stream, StreamLog},
    npl,
    pipes::{CONTROL, NPL_OUT, STDERR, STDOUT, USERS_OUT},
    request::CONTROL_BYTES_MAX,
};
use crate::types::{LimitKind, NodeKey, UserKey};

/// Where the contract's bytes go.
pub(super) struct Sinks {
    limits: Limits,
    own: NodeKey,
    logs: [Option<StreamLog>; 2],
    pub(super) users: Vec<(UserKey, Vec<u8>)>,
    output_bytes: u64,
    npl_bytes: u64,
    pub(super) npl_frames: u64,
    pub(super) npl_ended: bool,
    /// What the contract asks of the network; at most [`CONTROL_BYTES_MAX`], which is more than any request has.
    pub(super) control: Vec<u8>,
    /// Messages on their way to the peers.
    pub(super) unsent: VecDeque<NplOut>,
    /// Own messages on their way back to the contract.
    pub(super) looped: Vec<Bytes>,
    /// The first limit that the bytes went over. What comes after that is dropped.
    pub(super) exceeded: Option<LimitKind>,
}

impl Sinks {
    pub(super) fn new(spec: &RunSpec, log: LogQueue) -> Sinks {
        let place = Place { dir: spec.log_dir.as_path().into(), files: spec.limits.log_files };
        let log_of =
            |stream| StreamLog::new(log.clone(), place.clone(), stream, spec.facts.seq, spec.limits.log_bytes_max);
        Sinks {
            limits: spec.limits.clone(),
            own: spec.facts.pubkey,
            logs: [Some(log_of(Stream::Stdout)), Some(log_of(Stream::Stderr))],
            users: Vec::new(),
            output_bytes: 0,
            npl_bytes: 0,
            npl_frames: 0,
            npl_ended: false,
            control: Vec::new(),
            unsent: VecDeque::new(),
            looped: Vec::new(),
            exceeded: None,
        }
    }

    pub(super) fn take(&mut self, place: usize, bytes: &[u8]) {
        match place {
            STDOUT | STDERR => {
                if let Some(log) = &mut self.logs[place] {
                    log.add(bytes);
                }
            }
            NPL_OUT => self.take_npl(bytes),
            CONTROL => {
                let room = CONTROL_BYTES_MAX - self.control.len();
                self.control.extend_from_slice(&bytes[..bytes.len().min(room)]);
            }
            user => self.take_output(user - USERS_OUT, bytes),
        }
    }

    fn take_output(&mut self, user: usize, bytes: &[u8]) {
        if self.exceeded.is_some() {
            return;
        }
        let output = &mut self.users[user].1;
        self.output_bytes += bytes.len() as u64;
        let output_bytes = (output.len() + bytes.len()) as u64;
        if self.output_bytes > self.limits.output_bytes_max || output_bytes > self.limits.output_user_bytes_max {
            self.exceeded = Some(LimitKind::Output);
            self.users.iter_mut().for_each(|(_, output)| *output = Vec::new());
        } else {
            output.extend_from_slice(bytes);
        }
    }

    fn take_npl(&mut self, bytes: &[u8]) {
        if self.exceeded.is_some() {
            return;
        }
        self.npl_bytes += bytes.len() as u64;
        if self.npl_bytes > self.limits.npl_bytes_max {
            self.exceeded = Some(LimitKind::Npl);
            return;
        }
        self.npl_frames += 1;
        self.looped.push(npl::write_frame(self.own, bytes));
        self.unsent.push_back(NplOut::Data(Bytes::copy_from_slice(bytes)));
    }

    /// The contract closed this pipe, or is dead.
    pub(super) fn closed(&mut self, place: usize) {
        match place {
            STDOUT | STDERR => {
                if let Some(log) = self.logs[place].take() {
                    log.finish();
                }
            }
            NPL_OUT => {
                self.npl_ended = true;
                self.unsent.push_back(NplOut::End { frames: self.npl_frames });
            }
            _ => {}
        }
    }

    pub(super) fn into_outputs(self) -> BTreeMap<UserKey, Vec<u8>> {
        self.users.into_iter().filter(|(_, output)| !output.is_empty()).collect()
    }
}
