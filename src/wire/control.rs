//! The control socket between the parent and a zygote: orders down, facts up. Fixed size, never user data.
//!
//! A message that carries a descriptor says so, and the descriptors of a stream arrive in the order of their messages,
//! so many messages can go with one system call.

use std::time::Duration;

use super::Fields;
use crate::model::{Signal, Usage, WorkerId};

/// What the parent wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Fork a worker; its end of the job socket comes along. `announce`: say `Forked`, with a pidfd. Else the parent
    /// learns its pid when it has exited: a message and a wake-up less for a task whose caller only wants its value.
    /// `spare`: no task waits for it, so other orders go first.
    Fork { worker: WorkerId, prepare: Prepare, announce: bool, spare: bool },
    /// Say `Forked` of a worker that was not announced when it was forked, or whose zygote is gone; or `Unknown`.
    Announce { worker: WorkerId },
    /// Signal a worker that was not reaped yet.
    Signal { worker: WorkerId, signal: Signal, group: bool },
    /// Fork another zygote from this pristine image; its control socket comes along, and the watch on the parent if
    /// `watched`.
    ForkZygote { watched: bool },
    /// Run the user's function, whose job comes on the socket that comes along.
    Preload,
    /// From now on workers may have a control group in the directory that comes along: it ends with its worker.
    Contain,
}

/// What a worker builds before its job is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Prepare {
    /// The tokio runtime, which most tasks want.
    Tokio,
    Nothing,
}

/// Size of an order on the wire.
pub(crate) const ORDER_SIZE: usize = 24;
pub(crate) type OrderBytes = [u8; ORDER_SIZE];

const FORK: u32 = 1;
const SIGNAL: u32 = 2;
const FORK_ZYGOTE: u32 = 3;
const ANNOUNCE: u32 = 4;
const PRELOAD: u32 = 5;
const CONTAIN: u32 = 6;

impl Order {
    pub(crate) fn encode(self) -> OrderBytes {
        let (tag, flag, worker, signal) = match self {
            Self::Fork { worker, prepare, announce, spare } => {
                let flags = u32::from(prepare == Prepare::Tokio) | (u32::from(announce) << 1) | (u32::from(spare) << 2);
                (FORK, flags, worker.0, 0)
            }
            Self::Announce { worker } => (ANNOUNCE, 0, worker.0, 0),
            Self::Signal { worker, signal, group } => (SIGNAL, u32::from(group), worker.0, signal.number()),
            Self::ForkZygote { watched } => (FORK_ZYGOTE, u32::from(watched), 0, 0),
            Self::Preload => (PRELOAD, 0, 0, 0),
            Self::Contain => (CONTAIN, 0, 0, 0),
        };
        let mut bytes = [0; ORDER_SIZE];
        bytes[0..4].copy_from_slice(&tag.to_le_bytes());
        bytes[4..8].copy_from_slice(&flag.to_le_bytes());
        bytes[8..16].copy_from_slice(&worker.to_le_bytes());
        bytes[16..20].copy_from_slice(&signal.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &OrderBytes) -> Result<Self, UnknownTag> {
        let mut fields = Fields(bytes);
        let (tag, flag, worker, number) = (fields.u32(), fields.u32(), WorkerId(fields.u64()), fields.i32());
        match tag {
            FORK => {
                let prepare = if flag & 1 != 0 { Prepare::Tokio } else { Prepare::Nothing };
                Ok(Self::Fork { worker, prepare, announce: flag & 2 != 0, spare: flag & 4 != 0 })
            }
            ANNOUNCE => Ok(Self::Announce { worker }),
            SIGNAL => Ok(Self::Signal { worker, signal: Signal::from(number), group: flag != 0 }),
            PRELOAD => Ok(Self::Preload),
            CONTAIN => Ok(Self::Contain),
            FORK_ZYGOTE => Ok(Self::ForkZygote { watched: flag != 0 }),
            tag => Err(UnknownTag(tag)),
        }
    }

    /// How many descriptors come with it.
    pub(crate) fn fds(self) -> usize {
        match self {
            Self::Fork { .. } | Self::Preload | Self::Contain => 1,
            Self::Signal { .. } | Self::Announce { .. } => 0,
            Self::ForkZygote { watched } => 1 + usize::from(watched),
        }
    }
}

/// What a zygote knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fact {
    /// The zygote serves; its code is on huge pages if `huge_text`.
    Ready { pid: i32, huge_text: bool },
    /// The worker was forked; a pidfd comes along if `pidfd`.
    Forked { worker: WorkerId, pid: i32, pidfd: bool },
    /// The worker could not be forked.
    NotForked { worker: WorkerId, errno: i32 },
    /// The worker was reaped, and what was left of its group was killed.
    Exited { worker: WorkerId, pid: i32, status: i32, usage: Usage },
    /// The worker was stopped, by a signal or a tracer.
    Stopped { worker: WorkerId },
    /// There is no such worker, or none any more.
    Unknown { worker: WorkerId },
    /// Another zygote was forked (it says `Ready` on its own socket), or could not be.
    ZygoteForked { errno: i32 },
}

/// Size of a fact on the wire.
pub(crate) const FACT_SIZE: usize = 48;
pub(crate) type FactBytes = [u8; FACT_SIZE];

const READY: u32 = 1;
const FORKED: u32 = 2;
const NOT_FORKED: u32 = 3;
const EXITED: u32 = 4;
const ZYGOTE_FORKED: u32 = 5;
const STOPPED: u32 = 6;
const UNKNOWN: u32 = 7;

impl Fact {
    pub(crate) fn encode(self) -> FactBytes {
        let none = Usage::default();
        let (tag, number, worker, flag, usage) = match self {
            Self::Ready { pid, huge_text } => (READY, pid, 0, u32::from(huge_text), none),
            Self::Forked { worker, pid, pidfd } => (FORKED, pid, worker.0, u32::from(pidfd), none),
            Self::NotForked { worker, errno } => (NOT_FORKED, errno, worker.0, 0, none),
            Self::Exited { worker, pid, status, usage } => {
                (EXITED, status, worker.0, u32::try_from(pid).unwrap_or(0), usage)
            }
            Self::ZygoteForked { errno } => (ZYGOTE_FORKED, errno, 0, 0, none),
            Self::Stopped { worker } => (STOPPED, 0, worker.0, 0, none),
            Self::Unknown { worker } => (UNKNOWN, 0, worker.0, 0, none),
        };
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let mut bytes = [0; FACT_SIZE];
        bytes[0..4].copy_from_slice(&tag.to_le_bytes());
        bytes[4..8].copy_from_slice(&number.to_le_bytes());
        bytes[8..16].copy_from_slice(&worker.to_le_bytes());
        bytes[16..24].copy_from_slice(&micros(usage.user_time).to_le_bytes());
        bytes[24..32].copy_from_slice(&micros(usage.system_time).to_le_bytes());
        bytes[32..40].copy_from_slice(&usage.max_rss.to_le_bytes());
        bytes[40..44].copy_from_slice(&flag.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &FactBytes) -> Result<Self, UnknownTag> {
        let mut fields = Fields(bytes);
        let (tag, number, worker) = (fields.u32(), fields.i32(), WorkerId(fields.u64()));
        let user_time = Duration::from_micros(fields.u64());
        let system_time = Duration::from_micros(fields.u64());
        let usage = Usage { user_time, system_time, max_rss: fields.u64() };
        let last = fields.u32();
        match tag {
            READY => Ok(Self::Ready { pid: number, huge_text: last != 0 }),
            FORKED => Ok(Self::Forked { worker, pid: number, pidfd: last != 0 }),
            NOT_FORKED => Ok(Self::NotForked { worker, errno: number }),
            EXITED => Ok(Self::Exited { worker, pid: i32::try_from(last).unwrap_or(0), status: number, usage }),
            ZYGOTE_FORKED => Ok(Self::ZygoteForked { errno: number }),
            STOPPED => Ok(Self::Stopped { worker }),
            UNKNOWN => Ok(Self::Unknown { worker }),
            tag => Err(UnknownTag(tag)),
        }
    }

    /// The worker that it is about.
    pub(crate) fn worker(self) -> Option<WorkerId> {
        match self {
            Self::Forked { worker, .. }
            | Self::NotForked { worker, .. }
            | Self::Exited { worker, .. }
            | Self::Stopped { worker }
            | Self::Unknown { worker } => Some(worker),
            Self::Ready { .. } | Self::ZygoteForked { .. } => None,
        }
    }

    /// How many descriptors come with it.
    pub(crate) fn fds(self) -> usize {
        usize::from(matches!(self, Self::Forked { pidfd: true, .. }))
    }
}

/// A message of a kind that this side does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a control message of the unknown kind {0}")]
pub(crate) struct UnknownTag(u32);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_survive_the_wire() {
        let worker = WorkerId(u64::MAX - 1);
        for order in [
            Order::Fork { worker, prepare: Prepare::Tokio, announce: false, spare: true },
            Order::Fork { worker, prepare: Prepare::Nothing, announce: true, spare: false },
            Order::Announce { worker },
            Order::Signal { worker, signal: Signal::TERM, group: true },
            Order::Signal { worker, signal: Signal::from(64), group: false },
            Order::ForkZygote { watched: true },
            Order::Preload,
        ] {
            assert_eq!(Order::decode(&order.encode()), Ok(order));
        }
        assert_eq!(Order::decode(&[9; ORDER_SIZE]), Err(UnknownTag(0x0909_0909)));
    }

    #[test]
    fn facts_survive_the_wire() {
        let worker = WorkerId(7);
        let usage =
            Usage { user_time: Duration::from_micros(3), system_time: Duration::from_secs(9), max_rss: 1 << 40 };
        for fact in [
            Fact::Ready { pid: 1, huge_text: true },
            Fact::Forked { worker, pid: i32::MAX, pidfd: true },
            Fact::NotForked { worker, errno: 11 },
            Fact::Exited { worker, pid: i32::MAX, status: 0xff00, usage },
            Fact::ZygoteForked { errno: 0 },
            Fact::Stopped { worker },
            Fact::Unknown { worker },
        ] {
            assert_eq!(Fact::decode(&fact.encode()), Ok(fact));
        }
        assert_eq!(Fact::decode(&[0; FACT_SIZE]), Err(UnknownTag(0)));
    }

    /// Whatever comes is an order or a fact, or is refused: what it says is what would be said again.
    #[test]
    fn e72_malformed_messages_are_refused() {
        use crate::model::random::Random;
        let mut random = Random(0x72);
        let (mut orders, mut facts) = (0, 0);
        for _ in 0..100_000 {
            let mut order: OrderBytes = std::array::from_fn(|_| random.next() as u8);
            let mut fact: FactBytes = std::array::from_fn(|_| random.next() as u8);
            if random.below(2) == 0 {
                order[..4].copy_from_slice(&(random.below(9) as u32).to_le_bytes());
                fact[..4].copy_from_slice(&(random.below(9) as u32).to_le_bytes());
            }
            if let Ok(order) = Order::decode(&order) {
                orders += 1;
                assert!(order.fds() <= 2);
                assert_eq!(Order::decode(&order.encode()), Ok(order));
            }
            if let Ok(fact) = Fact::decode(&fact) {
                facts += 1;
                assert!(fact.fds() <= 1);
                let again = Fact::decode(&fact.encode()).unwrap();
                assert_eq!((again.worker(), again.fds()), (fact.worker(), fact.fds()));
            }
        }
        assert!(orders > 1000 && facts > 1000, "{orders} orders, {facts} facts");
    }
}
