//! Channels between processes: order, backpressure, and what each end learns of the other's.

use std::time::Duration;

use tokio_run_in_process::{
    Bytes, Caller, ChannelError, Error, Pool, Receiver, Sender, Signal, call_channel, channel, channel_with_limit,
    open_blocking_in_process, open_in_process, run_in_process,
};

use crate::{harness::with_default, oracle::undisturbed};

crate::cases![
    ends_can_be_anywhere_in_the_arguments,
    each_end_learns_that_the_other_one_was_dropped,
    a_task_that_is_killed_ends_both_its_channels,
    a_task_that_dies_in_the_middle_of_a_message,
    a_sender_waits_while_the_channel_is_full,
    a_send_that_was_given_up_half_way_is_completed,
    select_over_two_channels_loses_nothing,
    two_tasks_talk_to_each_other,
    a_receiver_takes_along_what_it_has,
    plain_functions_send_and_receive,
    a_program_without_tokio_sends_and_receives,
    a_runtime_that_is_gone_hands_its_ends_on,
    messages_of_every_size,
    a_message_that_does_not_decode_is_skipped,
    what_is_no_message_ends_the_channel,
    ends_and_descriptors_do_not_travel_elsewhere,
    a_sender_that_was_fed_is_not_passed_on,
    a_task_calls_back_into_its_parent,
    an_answer_to_a_question_that_was_given_up_is_not_taken_for_another,
    tasks_of_a_pool_use_channels,
    the_parent_is_told_at_once_when_a_pools_task_is_gone,
    ;
    120 => a_million_messages_each_way,
];

#[cfg(feature = "smol")]
pub(crate) const SMOL_CASES: &[crate::harness::Case] = &[crate::harness::Case {
    name: "a_task_on_smol_sends_and_receives",
    deadline: Duration::from_secs(30),
    body: a_task_on_smol_sends_and_receives,
}];

async fn echo(mut incoming: Receiver<u64>, mut outgoing: Sender<u64>) -> u64 {
    let mut count = 0;
    while let Some(n) = incoming.recv().await.unwrap() {
        outgoing.send(n).await.unwrap();
        count += 1;
    }
    count
}

fn a_million_messages_each_way() {
    const COUNT: u64 = 1_000_000;
    async fn both(mut incoming: Receiver<u64>, mut outgoing: Sender<u64>) -> u64 {
        let send = async {
            for n in 0..COUNT {
                outgoing.feed(n).await.unwrap();
            }
            outgoing.flush().await.unwrap();
            drop(outgoing);
        };
        let receive = async {
            let mut next = 0;
            while let Some(n) = incoming.recv().await.unwrap() {
                assert_eq!(n, next);
                next += 1;
            }
            next
        };
        tokio::join!(receive, send).0
    }
    undisturbed(|| async {
        let (mut sender, incoming) = channel().unwrap();
        let (outgoing, mut receiver) = channel().unwrap();
        let process = open_in_process(both, (incoming, outgoing)).await.unwrap();
        let sending = tokio::spawn(async move {
            for n in 0..COUNT {
                sender.send(n).await.unwrap();
            }
        });
        let mut next = 0;
        while let Some(n) = receiver.recv().await.unwrap() {
            assert_eq!(n, next);
            next += 1;
        }
        assert_eq!(next, COUNT);
        sending.await.unwrap();
        assert_eq!(process.wait().await.unwrap(), COUNT);
    });
}

fn ends_can_be_anywhere_in_the_arguments() {
    #[derive(serde::Serialize, serde::Deserialize)]
    struct Job {
        name: String,
        answers: Vec<Option<Sender<String>>>,
    }
    async fn work(job: Job) {
        for (n, sender) in job.answers.into_iter().enumerate() {
            if let Some(mut sender) = sender {
                sender.send(format!("{} {n}", job.name)).await.unwrap();
            }
        }
    }
    undisturbed(|| async {
        let (first, mut from_first) = channel::<String>().unwrap();
        let (third, mut from_third) = channel::<String>().unwrap();
        let job = Job { name: "job".into(), answers: vec![Some(first), None, Some(third)] };
        run_in_process(work, job).await.unwrap();
        assert_eq!(from_first.recv().await.unwrap().as_deref(), Some("job 0"));
        assert_eq!(from_first.recv().await.unwrap(), None);
        assert_eq!(from_third.recv().await.unwrap().as_deref(), Some("job 2"));
        assert_eq!(from_third.recv().await.unwrap(), None);
        assert_eq!(from_third.recv().await.unwrap(), None, "and again");
    });
}

fn each_end_learns_that_the_other_one_was_dropped() {
    async fn drops(receiver: Receiver<u64>, sender: Sender<u64>) {
        drop((receiver, sender));
        // It goes on: not its death is what the parent hears of.
        std::future::pending().await
    }
    async fn waits(mut receiver: Receiver<u64>, mut sender: Sender<u64>) -> bool {
        assert_eq!(receiver.recv().await.unwrap(), None);
        sender.closed().await.unwrap();
        sender.is_closed() && matches!(sender.send(1).await, Err(ChannelError::Closed))
    }
    undisturbed(|| async {
        let (mut to, receiver) = channel().unwrap();
        let (sender, mut from) = channel().unwrap();
        let process = open_in_process(drops, (receiver, sender)).await.unwrap();
        assert_eq!(from.recv().await.unwrap(), None);
        to.closed().await.unwrap();
        assert!(to.is_closed());
        assert!(matches!(to.send(1).await, Err(ChannelError::Closed)));
        drop(process);

        let (to, receiver) = channel().unwrap();
        let (sender, from) = channel().unwrap();
        assert!(!to.is_closed());
        let process = open_in_process(waits, (receiver, sender)).await.unwrap();
        drop((to, from));
        assert!(process.wait().await.unwrap());
    });
}

fn a_task_that_is_killed_ends_both_its_channels() {
    async fn idle(_receiver: Receiver<Bytes>, mut sender: Sender<u64>) {
        sender.send(1).await.unwrap();
        std::future::pending().await
    }
    undisturbed(|| async {
        for _ in 0..20 {
            let (mut to, receiver) = channel::<Bytes>().unwrap();
            let (sender, mut from) = channel().unwrap();
            let process = open_in_process(idle, (receiver, sender)).await.unwrap();
            assert_eq!(from.recv().await.unwrap(), Some(1));
            // Both wait: one for a message, the other for room.
            let sending = tokio::spawn(async move {
                let message = Bytes::from(vec![0; 100_000]);
                loop {
                    if let Err(error) = to.send(message.clone()).await {
                        return error;
                    }
                }
            });
            let receiving = tokio::spawn(async move { from.recv().await });
            tokio::task::yield_now().await;
            process.kill().unwrap();
            assert!(matches!(sending.await.unwrap(), ChannelError::Closed));
            assert_eq!(receiving.await.unwrap().unwrap(), None);
            assert_eq!(process.wait().await.unwrap_err().signal(), Some(Signal::KILL));
        }
    });
}

fn a_task_that_dies_in_the_middle_of_a_message() {
    async fn half(mut sender: Sender<Bytes>) {
        sender.send(Bytes::from("whole")).await.unwrap();
        // Nobody reads, so the rest of it waits for room.
        let large = sender.send(Bytes::from(vec![1; 8 << 20]));
        let _ = tokio::time::timeout(Duration::from_millis(50), large).await;
        std::process::exit(7)
    }
    undisturbed(|| async {
        let (sender, mut receiver) = channel().unwrap();
        let process = open_in_process(half, sender).await.unwrap();
        assert!(matches!(process.wait().await, Err(Error::Exited { code: 7, .. })));
        assert_eq!(receiver.recv().await.unwrap().as_deref(), Some(&b"whole"[..]));
        assert!(matches!(receiver.recv().await, Err(ChannelError::Truncated)));
        assert_eq!(receiver.recv().await.unwrap(), None);
    });
}

fn a_sender_waits_while_the_channel_is_full() {
    async fn flood(mut sender: Sender<Bytes>) -> u64 {
        let message = Bytes::from(vec![0; 1000]);
        let mut count = 0;
        // Far more than a buffer of the system holds would take a while.
        while tokio::time::timeout(Duration::from_millis(300), sender.send(message.clone())).await.is_ok() {
            count += 1;
        }
        count
    }
    undisturbed(|| async {
        let (sender, mut receiver) = channel().unwrap();
        let count = run_in_process(flood, sender).await.unwrap();
        assert!((10..10_000).contains(&count), "{count} messages of 1 kB went, and nobody received");
        let mut received = 0;
        while let Ok(Some(message)) = receiver.recv().await {
            assert_eq!(message.len(), 1000);
            received += 1;
        }
        assert_eq!(received, count, "all that was sent");
    });
}

fn a_send_that_was_given_up_half_way_is_completed() {
    async fn receive(mut receiver: Receiver<Bytes>, start: Receiver<()>) -> Vec<usize> {
        let mut start = start;
        start.recv().await.unwrap();
        let mut sizes = Vec::new();
        while let Some(message) = receiver.recv().await.unwrap() {
            sizes.push(message.len());
        }
        sizes
    }
    undisturbed(|| async {
        let (mut sender, receiver) = channel().unwrap();
        let (mut start, started) = channel().unwrap();
        let process = open_in_process(receive, (receiver, started)).await.unwrap();
        let large = sender.send(Bytes::from(vec![1; 8 << 20]));
        assert!(tokio::time::timeout(Duration::from_millis(20), large).await.is_err());
        start.send(()).await.unwrap();
        sender.send(Bytes::from(vec![2; 10])).await.unwrap();
        drop(sender);
        assert_eq!(process.wait().await.unwrap(), [8 << 20, 10]);
    });
}

fn select_over_two_channels_loses_nothing() {
    async fn count(mut sender: Sender<u64>, upto: u64) {
        for n in 0..upto {
            sender.send(n).await.unwrap();
            if n % 100 == 0 {
                tokio::task::yield_now().await;
            }
        }
    }
    undisturbed(|| async {
        let (first, mut from_first) = channel().unwrap();
        let (second, mut from_second) = channel().unwrap();
        let one = open_in_process(count, (first, 10_000)).await.unwrap();
        let two = open_in_process(count, (second, 10_000)).await.unwrap();
        let (mut a, mut b) = (0, 0);
        let (mut a_open, mut b_open) = (true, true);
        while a_open || b_open {
            tokio::select! {
                n = from_first.recv(), if a_open => match n.unwrap() {
                    Some(n) => { assert_eq!(n, a); a += 1; }
                    None => a_open = false,
                },
                n = from_second.recv(), if b_open => match n.unwrap() {
                    Some(n) => { assert_eq!(n, b); b += 1; }
                    None => b_open = false,
                },
            }
        }
        assert_eq!((a, b), (10_000, 10_000));
        one.wait().await.unwrap();
        two.wait().await.unwrap();
    });
}

fn two_tasks_talk_to_each_other() {
    async fn count(mut sender: Sender<u64>) {
        for n in 0..1000 {
            sender.send(n).await.unwrap();
        }
    }
    async fn sum(mut receiver: Receiver<u64>) -> u64 {
        let mut sum = 0;
        while let Some(n) = receiver.recv().await.unwrap() {
            sum += n;
        }
        sum
    }
    undisturbed(|| async {
        let (sender, receiver) = channel().unwrap();
        let (sent, sum) = tokio::join!(run_in_process(count, sender), run_in_process(sum, receiver));
        sent.unwrap();
        assert_eq!(sum.unwrap(), 499_500);
    });
}

fn a_receiver_takes_along_what_it_has() {
    async fn rest(mut receiver: Receiver<u64>) -> Vec<u64> {
        let mut all = Vec::new();
        while let Some(n) = receiver.recv().await.unwrap() {
            all.push(n);
        }
        all
    }
    undisturbed(|| async {
        let (mut sender, mut receiver) = channel().unwrap();
        for n in 0..10 {
            sender.send(n).await.unwrap();
        }
        assert_eq!(receiver.recv().await.unwrap(), Some(0));
        let process = open_in_process(rest, receiver).await.unwrap();
        sender.send(10).await.unwrap();
        drop(sender);
        assert_eq!(process.wait().await.unwrap(), (1..=10).collect::<Vec<_>>());
    });
}

fn plain_functions_send_and_receive() {
    fn double(mut incoming: Receiver<u64>, mut outgoing: Sender<u64>) -> u64 {
        let mut count = 0;
        while let Some(n) = incoming.blocking_recv().unwrap() {
            outgoing.blocking_send(2 * n).unwrap();
            count += 1;
        }
        count
    }
    undisturbed(|| async {
        let (mut to, incoming) = channel().unwrap();
        let (outgoing, mut from) = channel().unwrap();
        let process = open_blocking_in_process(double, (incoming, outgoing)).await.unwrap();
        for n in 0..1000 {
            to.send(n).await.unwrap();
            assert_eq!(from.recv().await.unwrap(), Some(2 * n));
        }
        drop(to);
        assert_eq!(process.wait().await.unwrap(), 1000);
    });
}

#[cfg(feature = "smol")]
fn a_task_on_smol_sends_and_receives() {
    use tokio_run_in_process::{Smol, Task};
    undisturbed(|| async {
        let (mut to, incoming) = channel().unwrap();
        let (outgoing, mut from) = channel().unwrap();
        let process = Task::new().runtime::<Smol>().open(echo, (incoming, outgoing)).await.unwrap();
        for n in 0..1000 {
            to.send(n).await.unwrap();
            assert_eq!(from.recv().await.unwrap(), Some(n));
        }
        drop(to);
        assert_eq!(process.wait().await.unwrap(), 1000);
    });
}

/// Polls a future on this thread, by parking.
fn park_on<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = std::sync::Arc::new(Unpark(std::thread::current())).into();
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut std::task::Context::from_waker(&waker)) {
            std::task::Poll::Ready(value) => return value,
            std::task::Poll::Pending => std::thread::park(),
        }
    }
}

fn a_program_without_tokio_sends_and_receives() {
    tokio_run_in_process::init().unwrap();
    park_on(async {
        let (mut to, incoming) = channel().unwrap();
        let (outgoing, mut from) = channel().unwrap();
        let process = open_in_process(echo, (incoming, outgoing)).await.unwrap();
        for n in 0..1000 {
            to.send(n).await.unwrap();
            assert_eq!(from.recv().await.unwrap(), Some(n));
        }
        drop(to);
        assert_eq!(process.wait().await.unwrap(), 1000);
    });
    assert_eq!(crate::oracle::threads(), 2, "this one and the driver");
}

fn a_runtime_that_is_gone_hands_its_ends_on() {
    tokio_run_in_process::init().unwrap();
    let (mut to, incoming) = channel().unwrap();
    let (outgoing, mut from) = channel().unwrap();
    let first = tokio::runtime::Runtime::new().unwrap();
    let process = first.block_on(async { open_in_process(echo, (incoming, outgoing)).await.unwrap() });
    first.block_on(async {
        to.send(1).await.unwrap();
        assert_eq!(from.recv().await.unwrap(), Some(1));
    });
    drop(first);
    for n in 2..5 {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            to.send(n).await.unwrap();
            assert_eq!(from.recv().await.unwrap(), Some(n));
        });
    }
    // One without a reactor, too.
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
        to.send(5).await.unwrap();
        assert_eq!(from.recv().await.unwrap(), Some(5));
    });
    drop(to);
    assert_eq!(park_on(process.wait()).unwrap(), 5);
}

fn messages_of_every_size() {
    async fn back(mut incoming: Receiver<Bytes>, mut outgoing: Sender<Bytes>) {
        while let Some(message) = incoming.recv().await.unwrap() {
            outgoing.send(message).await.unwrap();
        }
    }
    undisturbed(|| async {
        let (mut to, incoming) = channel_with_limit(64 << 20).unwrap();
        let (outgoing, mut from) = channel_with_limit(64 << 20).unwrap();
        let process = open_in_process(back, (incoming, outgoing)).await.unwrap();
        let around = |size: usize| [size - 1, size, size + 1];
        let sizes: Vec<usize> = [0, 1, 2]
            .into_iter()
            .chain([250, 4096, 16 << 10, 64 << 10, 208 << 10, 1 << 20].map(around).concat())
            .collect();
        for size in sizes.into_iter().chain([20 << 20]) {
            let message: Bytes = (0..size).map(|n| (n * 31) as u8).collect();
            to.send(message.clone()).await.unwrap();
            assert!(from.recv().await.unwrap().unwrap() == message, "{size} bytes");
        }
        drop(to);
        process.wait().await.unwrap();
    });
}

fn a_message_that_does_not_decode_is_skipped() {
    async fn lie(sender: Sender<bool>) {
        // The same channel, of another type.
        let mut sender = as_bytes(sender);
        for byte in [1, 2, 0] {
            sender.send(byte).await.unwrap();
        }
    }
    /// What a worker with damaged memory might do.
    fn as_bytes(sender: Sender<bool>) -> Sender<u8> {
        // SAFETY: the type of a message changes nothing in memory.
        unsafe { std::mem::transmute(sender) }
    }
    undisturbed(|| async {
        let (sender, mut receiver) = channel().unwrap();
        run_in_process(lie, sender).await.unwrap();
        assert_eq!(receiver.recv().await.unwrap(), Some(true));
        assert!(matches!(receiver.recv().await, Err(ChannelError::Decode(_))));
        assert_eq!(receiver.recv().await.unwrap(), Some(false));
        assert_eq!(receiver.recv().await.unwrap(), None);
    });
}

fn what_is_no_message_ends_the_channel() {
    async fn lie(sender: Sender<u64>) {
        // Every descriptor above stdio and the job socket is the channel's.
        std::mem::forget(sender);
        for fd in 4..100 {
            // SAFETY: live bytes; a number that is not open, or not a socket, is an error.
            unsafe { libc::send(fd, [0xff_u8; 100].as_ptr().cast(), 100, libc::MSG_NOSIGNAL) };
        }
    }
    undisturbed(|| async {
        let (sender, mut receiver) = channel_with_limit::<u64>(1000).unwrap();
        run_in_process(lie, sender).await.unwrap();
        assert!(matches!(receiver.recv().await, Err(ChannelError::TooLarge { limit: 1000, .. })));
        assert_eq!(receiver.recv().await.unwrap(), None);
    });
}

fn ends_and_descriptors_do_not_travel_elsewhere() {
    async fn gives_back(sender: Sender<u64>) -> Sender<u64> {
        sender
    }
    undisturbed(|| async {
        let (sender, _receiver) = channel::<u64>().unwrap();
        let error = run_in_process(gives_back, sender).await.unwrap_err().to_string();
        assert!(error.contains("can only be passed in the arguments of a task"), "{error}");
        let (mut sender, _receiver) = channel::<Receiver<u64>>().unwrap();
        let (_other, end) = channel::<u64>().unwrap();
        let error = sender.send(end).await.unwrap_err().to_string();
        assert!(error.contains("can only be passed in the arguments of a task"), "{error}");
        let (other, _end) = channel::<u64>().unwrap();
        let error = serde_json::to_string(&other).unwrap_err().to_string();
        assert!(error.contains("can only be passed in the arguments of a task"), "{error}");
    });
}

fn a_sender_that_was_fed_is_not_passed_on() {
    undisturbed(|| async {
        let (mut sender, mut receiver) = channel::<u64>().unwrap();
        sender.feed(1).await.unwrap();
        let error = run_in_process(async |_: Sender<u64>| (), sender).await.unwrap_err();
        assert!(matches!(&error, Error::Encode { reason, .. } if reason.contains("flushed")), "{error}");
        assert_eq!(receiver.recv().await.unwrap(), Some(1), "dropped, it sent it");
    });
}

fn a_task_calls_back_into_its_parent() {
    async fn ask(mut parent: Caller<u64, String>) -> Vec<String> {
        let mut answers = Vec::new();
        for n in 0..100 {
            answers.push(parent.call(n).await.unwrap());
        }
        answers
    }
    undisturbed(|| async {
        let (caller, responder) = call_channel().unwrap();
        let process = open_in_process(ask, caller).await.unwrap();
        responder.serve(async |n: u64| format!("{n}!")).await.unwrap();
        let answers = process.wait().await.unwrap();
        assert_eq!(answers[99], "99!");

        // Nobody answers.
        let (caller, responder) = call_channel::<u64, String>().unwrap();
        drop(responder);
        let process = open_in_process(async |mut caller: Caller<u64, String>| caller.call(1).await.is_err(), caller);
        assert!(process.await.unwrap().wait().await.unwrap());
    });
}

fn an_answer_to_a_question_that_was_given_up_is_not_taken_for_another() {
    undisturbed(|| async {
        let (mut caller, mut responder) = call_channel::<u64, u64>().unwrap();
        let given_up = tokio::time::timeout(Duration::from_millis(10), caller.call(1));
        assert!(given_up.await.is_err());
        let answers = tokio::spawn(async move {
            while let Some((question, reply)) = responder.recv().await.unwrap() {
                responder.reply(reply, 10 * question).await.unwrap();
            }
        });
        assert_eq!(caller.call(2).await.unwrap(), 20);
        drop(caller);
        answers.await.unwrap();
    });
}

fn tasks_of_a_pool_use_channels() {
    with_default(|| async {
        let pool = Pool::builder().workers(1).build().unwrap();
        for _ in 0..3 {
            let (mut to, incoming) = channel().unwrap();
            let (outgoing, mut from) = channel().unwrap();
            let task = pool.open(echo, (incoming, outgoing)).await.unwrap();
            for n in 0..100 {
                to.send(n).await.unwrap();
                assert_eq!(from.recv().await.unwrap(), Some(n));
            }
            drop(to);
            assert_eq!(task.wait().await.unwrap(), 100);
            assert_eq!(from.recv().await.unwrap(), None);
        }
    });
}

fn the_parent_is_told_at_once_when_a_pools_task_is_gone() {
    async fn dies(mut sender: Sender<u64>) {
        sender.send(u64::from(std::process::id())).await.unwrap();
        std::process::abort()
    }
    with_default(|| async {
        crate::oracle::no_core_files();
        let pool = Pool::builder().workers(1).build().unwrap();
        let (sender, mut receiver) = channel().unwrap();
        let task = pool.open(dies, sender).await.unwrap();
        assert!(receiver.recv().await.unwrap().is_some());
        assert_eq!(receiver.recv().await.unwrap(), None);
        assert_eq!(task.wait().await.unwrap_err().signal(), Some(Signal::ABRT));
    });
}
