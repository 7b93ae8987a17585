//! Channels at their limits: a flood, a descriptor too few, a receiver that left without reading, bytes that mean harm.

use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::{Deserialize, Deserializer, Serialize};
use tokio_run_in_process::{ChannelError, Error, Receiver, Sender, channel, open_in_process, run_in_process};

use crate::oracle::undisturbed;

crate::cases![
    a_flood_leaves_room_for_others,
    a_descriptor_too_few_for_a_while,
    an_end_that_cannot_be_copied_now_can_later,
    a_receiver_that_left_without_reading_is_gone,
    what_comes_from_the_wrong_side_is_no_end,
    a_message_whose_decoding_panics_is_skipped,
];

/// One thread for the channel and for those beside it, as in a worker.
fn on_one_thread(body: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(body);
}

fn a_flood_leaves_room_for_others() {
    on_one_thread(async {
        let (mut sender, mut receiver) = channel::<u8>().unwrap();
        for n in 0..10_000 {
            sender.feed((n % 256) as u8).await.unwrap();
        }
        sender.flush().await.unwrap();
        let turns = std::rc::Rc::new(std::cell::Cell::new(0));
        let counted = turns.clone();
        let local = tokio::task::LocalSet::new();
        local.spawn_local(async move {
            loop {
                counted.set(counted.get() + 1);
                tokio::task::yield_now().await;
            }
        });
        local
            .run_until(async {
                for n in 0..10_000 {
                    assert_eq!(receiver.recv().await.unwrap(), Some((n % 256) as u8));
                }
                assert!(turns.get() > 10, "{} turns beside 10,000 messages that were there", turns.get());
                turns.set(0);
                for _ in 0..10_000 {
                    sender.feed(7).await.unwrap();
                }
                assert!(turns.get() > 10, "{} turns beside 10,000 messages that were fed", turns.get());
            })
            .await;
    });
}

fn a_descriptor_too_few_for_a_while() {
    on_one_thread(async {
        let (mut sender, mut receiver) = channel::<u8>().unwrap();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 64, hard).unwrap();
        let taken: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect();
        // It has to wait, for which it needs a descriptor.
        let error = receiver.recv().await.unwrap_err();
        assert!(matches!(&error, ChannelError::Io(e) if e.raw_os_error() == Some(libc::EMFILE)), "{error:?}");
        drop(taken);
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
        sender.send(7).await.unwrap();
        assert_eq!(receiver.recv().await.unwrap(), Some(7));
        let (received, sent) = tokio::join!(receiver.recv(), async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            sender.send(8).await
        });
        sent.unwrap();
        assert_eq!(received.unwrap(), Some(8));
    });
}

fn an_end_that_cannot_be_copied_now_can_later() {
    undisturbed(|| async {
        let (mut sender, receiver) = channel::<u8>().unwrap();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 64, hard).unwrap();
        let taken: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect();
        let takes = async |mut receiver: Receiver<u8>| receiver.recv().await.unwrap();
        let refused = run_in_process(takes, receiver).await;
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
        drop(taken);
        let error = refused.unwrap_err();
        let source = match &error {
            Error::Spawn { source, .. } => source.raw_os_error(),
            _ => None,
        };
        assert_eq!(source, Some(libc::EMFILE), "{error:?}");
        assert!(error.is_retryable());
        assert!(matches!(sender.send(1).await, Err(ChannelError::Closed)), "the end was given away");
        let (mut sender, receiver) = channel::<u8>().unwrap();
        sender.send(7).await.unwrap();
        assert_eq!(run_in_process(takes, receiver).await.unwrap(), Some(7));
    });
}

fn a_receiver_that_left_without_reading_is_gone() {
    undisturbed(|| async {
        let (mut sender, receiver) = channel::<u8>().unwrap();
        sender.send(1).await.unwrap();
        assert!(!sender.is_closed());
        drop(receiver);
        assert!(sender.is_closed(), "at the first look");
        // In another process.
        let (mut sender, receiver) = channel::<u8>().unwrap();
        let keeps = async |receiver: Receiver<u8>| {
            std::future::pending::<()>().await;
            drop(receiver);
        };
        let process = open_in_process(keeps, receiver).await.unwrap();
        sender.send(1).await.unwrap();
        process.kill().unwrap();
        sender.closed().await.unwrap();
        assert!(sender.is_closed());
        let _ = process.wait().await;
    });
}

/// Its socket by its number, of which the type does not tell.
fn sockets() -> Vec<i32> {
    let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    links
        .filter(|link| std::fs::read_link(link.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket:")))
        .map(|link| link.file_name().to_string_lossy().parse().unwrap())
        .collect()
}

fn what_comes_from_the_wrong_side_is_no_end() {
    on_one_thread(async {
        let before = sockets();
        let (sender, receiver) = channel::<u8>().unwrap();
        let ends: Vec<i32> = sockets().into_iter().filter(|fd| !before.contains(fd)).collect();
        let write = |fd: i32| {
            // SAFETY: a live buffer of that length.
            assert_eq!(unsafe { libc::write(fd, [7_u8; 100].as_ptr().cast(), 100) }, 100);
        };
        // The receiver's end is the later one.
        write(ends[1]);
        assert!(!sender.is_closed());
        write(ends[1]);
        let closed = tokio::time::timeout(Duration::from_millis(100), sender.closed());
        assert!(closed.await.is_err(), "it is there");
        write(ends[1]);
        drop(receiver);
        assert!(sender.is_closed());
        sender.closed().await.unwrap();
    });
}

#[derive(Debug, PartialEq, Serialize)]
struct Touchy(u8);

impl<'de> Deserialize<'de> for Touchy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let n = u8::deserialize(deserializer)?;
        assert_ne!(n, 13, "on purpose");
        Ok(Self(n))
    }
}

fn a_message_whose_decoding_panics_is_skipped() {
    undisturbed(|| async {
        let sends = async |mut sender: Sender<Touchy>| {
            for n in [12, 13, 14] {
                sender.send(Touchy(n)).await.unwrap();
            }
        };
        let (sender, mut receiver) = channel().unwrap();
        let process = open_in_process(sends, sender).await.unwrap();
        assert_eq!(receiver.recv().await.unwrap(), Some(Touchy(12)));
        let error = receiver.recv().await.unwrap_err();
        assert!(matches!(&error, ChannelError::Decode(why) if why.contains("panicked")), "{error:?}");
        assert_eq!(receiver.recv().await.unwrap(), Some(Touchy(14)));
        assert!(receiver.recv().await.unwrap().is_none());
        process.wait().await.unwrap();
    });
}
