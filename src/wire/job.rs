//! The one message from the parent to a worker on its job socket: the task.
//!
//! ```text
//! 0     4     6       8       16        24          32     40             48
//! | tag | fds | quiet | entry | options | arguments | host | result limit |  then options, then arguments
//! ```
//!
//! Descriptors (for stdio, then those in the arguments) come with its first bytes: as many as one message carries with the
//! first byte, more with the second, and so on ([`batches`]). This direction is trusted: the zygote and the worker are the
//! parent's own image. That is why `entry` and `runtime` may be addresses, and why they travel here only.

use std::{collections::BTreeMap, ffi::OsString};

use serde::{Deserialize, Serialize};

use super::{Fields, payload, rope::Rope};

/// Size of the header.
pub(crate) const HEADER_SIZE: usize = 48;
/// Where the header says it.
const QUIET_AT: usize = 6;
const TAG: u32 = 0x4a4f_4201;

/// Where the task runs in its worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    /// The worker's own tokio runtime.
    Tokio,
    /// No runtime: a plain function.
    Blocking,
    /// The worker's own tokio runtime, for one task after another, which come on a line that came along. The job's own
    /// function is what is run first.
    Pool,
    /// A runtime of the user's, by the address of its entry.
    Custom(u64),
}

const TOKIO: u64 = 0;
const BLOCKING: u64 = 1;
const POOL: u64 = 2;

/// What a worker does to itself before it runs the task.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Options {
    /// The task's name, for `ps` and `worker::name()`.
    pub(crate) name: Option<String>,
    pub(crate) env_clear: bool,
    /// Variables to set, or (`None`) to remove.
    pub(crate) env: BTreeMap<OsString, Option<OsString>>,
    pub(crate) current_dir: Option<OsString>,
    /// The directory in which the worker makes a control group for itself.
    pub(crate) cgroup: Option<OsString>,
    /// Which of stdin, stdout, stderr are replaced, each by the next descriptor that came along.
    pub(crate) stdio: [bool; 3],
}

/// The fixed part of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) fds: u16,
    /// The worker does not say `Executing`: its caller waits for the outcome only.
    pub(crate) quiet: bool,
    pub(crate) entry: u64,
    pub(crate) options: u64,
    pub(crate) arguments: u64,
    pub(crate) host: Host,
    /// Largest result, in bytes.
    pub(crate) result_limit: u64,
}

impl Header {
    pub(crate) fn encode(&self) -> [u8; HEADER_SIZE] {
        let host = match self.host {
            Host::Tokio => TOKIO,
            Host::Blocking => BLOCKING,
            Host::Pool => POOL,
            Host::Custom(address) => address,
        };
        let mut bytes = [0; HEADER_SIZE];
        bytes[0..4].copy_from_slice(&TAG.to_le_bytes());
        bytes[4..6].copy_from_slice(&self.fds.to_le_bytes());
        bytes[QUIET_AT] = u8::from(self.quiet);
        bytes[8..16].copy_from_slice(&self.entry.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.options.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.arguments.to_le_bytes());
        bytes[32..40].copy_from_slice(&host.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.result_limit.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; HEADER_SIZE]) -> Option<Self> {
        let mut fields = Fields(bytes);
        if fields.u32() != TAG {
            return None;
        }
        let [fds @ .., quiet, _] = fields.u32().to_le_bytes();
        let (entry, options, arguments) = (fields.u64(), fields.u64(), fields.u64());
        let host = match fields.u64() {
            TOKIO => Host::Tokio,
            BLOCKING => Host::Blocking,
            POOL => Host::Pool,
            address => Host::Custom(address),
        };
        Some(Self {
            fds: u16::from_le_bytes(fds),
            quiet: quiet != 0,
            entry,
            options,
            arguments,
            host,
            result_limit: fields.u64(),
        })
    }
}

/// How many messages carry `fds` descriptors of which one carries `most`. All but the last have one byte.
pub(crate) fn batches(fds: usize, most: usize) -> usize {
    fds.div_ceil(most).max(1)
}

/// Makes an encoded job a quiet one.
pub(crate) fn set_quiet(job: &mut [u8]) {
    job[QUIET_AT] = 1;
}

/// Encodes options; nothing if there are none, which is the usual case.
pub(crate) fn encode_options(options: &Options, out: &mut Rope) {
    if *options != Options::default() {
        payload::encode_into(options, out, u64::MAX).expect("options always encode");
    }
}

pub(crate) fn decode_options(bytes: &[u8]) -> Option<Options> {
    if bytes.is_empty() { Some(Options::default()) } else { payload::decode(bytes).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_survives_the_wire() {
        for host in [Host::Tokio, Host::Blocking, Host::Custom(0xdead_beef)] {
            let header =
                Header { fds: 3, quiet: true, entry: 1 << 40, options: 5, arguments: 6, host, result_limit: 7 };
            assert_eq!(Header::decode(&header.encode()), Some(header));
        }
        assert_eq!(Header::decode(&[0; HEADER_SIZE]), None);
        let mut out = Rope::default();
        encode_options(&Options::default(), &mut out);
        assert_eq!(out.len(), 0);
        let options =
            Options { name: Some("n".into()), env_clear: true, current_dir: Some("/".into()), ..Options::default() };
        encode_options(&options, &mut out);
        assert_eq!(decode_options(&out.into_bytes()), Some(options));
    }
}
