//! Many tasks at once, and very short ones.

use std::{collections::BTreeMap, future::poll_fn, io::Write, pin::Pin, task::Poll, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio_run_in_process::{
    Error, ExitStatus, Signal, Stdio, Task, Zygote, open_blocking_in_process, open_in_process, run_blocking_in_process,
    run_in_process,
};

use crate::oracle::{scratch, undisturbed, undisturbed_with};

crate::cases![
    e71_very_short_children_have_exact_statuses;
    300 => g107_ten_thousand_tasks_and_what_can_befall_them;
    120 => two_thousand_tasks_start_in_the_order_they_came,
    handles_dropped_all_at_once,
    futures_aborted_all_at_once,
];

/// SplitMix64: the same numbers in every run.
struct Random(u64);

const SEED: u64 = 0x5eed_0000_2024_1107;

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// What happens to a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Fate {
    Return,
    Cancelled,
    Panic,
    Exit,
    Crash,
}

impl Fate {
    fn draw(random: &mut Random) -> Self {
        match random.below(10) {
            0 => Self::Cancelled,
            1 => Self::Panic,
            2 => Self::Exit,
            3 => Self::Crash,
            _ => Self::Return,
        }
    }
}

/// How a task is called.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Way {
    Run,
    Open,
    RunBlocking,
    OpenBlocking,
    #[cfg(feature = "smol")]
    RunSmol,
    #[cfg(feature = "smol")]
    OpenSmol,
}

impl Way {
    fn draw(random: &mut Random) -> Self {
        match random.below(if cfg!(feature = "smol") { 6 } else { 4 }) {
            0 => Self::Run,
            1 => Self::Open,
            2 => Self::RunBlocking,
            3 => Self::OpenBlocking,
            #[cfg(feature = "smol")]
            4 => Self::RunSmol,
            #[cfg(feature = "smol")]
            _ => Self::OpenSmol,
            #[cfg(not(feature = "smol"))]
            _ => unreachable!(),
        }
    }
}

/// When a caller goes away: after some turns of its runtime, so also before anything was sent, or after some time.
#[derive(Clone, Copy, Debug)]
enum Moment {
    Turns(u64),
    Time(Duration),
}

impl Moment {
    fn draw(random: &mut Random) -> Self {
        match random.below(2) {
            0 => Self::Turns(random.below(40)),
            _ => Self::Time(Duration::from_millis(random.below(100))),
        }
    }

    async fn come(self) {
        match self {
            Self::Turns(turns) => {
                for _ in 0..turns {
                    tokio::task::yield_now().await;
                }
            }
            Self::Time(time) => tokio::time::sleep(time).await,
        }
    }
}

/// The value of a task, which no other has.
fn value(index: u64) -> u64 {
    index.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x0123_4567_89ab_cdef
}

pub(crate) fn exit_code(index: u64) -> i32 {
    i32::try_from(index % 256).unwrap()
}

fn crash_signal(index: u64) -> Signal {
    if index % 2 == 0 { Signal::ABRT } else { Signal::SEGV }
}

fn meet(index: u64, fate: Fate) -> u64 {
    match fate {
        Fate::Return | Fate::Cancelled => value(index),
        Fate::Panic => panic!("panic of {index}"),
        Fate::Exit if index % 2 == 0 => std::process::exit(exit_code(index)),
        // SAFETY: it ends the process.
        Fate::Exit => unsafe { libc::_exit(exit_code(index)) },
        Fate::Crash if index % 2 == 0 => std::process::abort(),
        Fate::Crash => {
            let nowhere = std::ptr::without_provenance_mut::<u8>(16);
            // SAFETY: it is not: nothing is mapped there, which is the purpose. It ends the process.
            unsafe { nowhere.write_volatile(1) };
            unreachable!()
        }
    }
}

/// A task that will be cancelled takes a little, so that its caller may go away before it or after it.
const LITTLE: Duration = Duration::from_millis(3);

async fn polled(index: u64, fate: Fate) -> u64 {
    if fate == Fate::Cancelled {
        tokio::time::sleep(LITTLE).await;
    }
    meet(index, fate)
}

fn plain(index: u64, fate: Fate) -> u64 {
    if fate == Fate::Cancelled {
        std::thread::sleep(LITTLE);
    }
    meet(index, fate)
}

#[cfg(feature = "smol")]
async fn on_smol(index: u64, fate: Fate) -> u64 {
    tokio_run_in_process::Smol::spawn(async move { meet(index, fate) }).await
}

pub(crate) async fn call(task: Task, index: u64, way: Way, fate: Fate) -> Result<u64, Error> {
    let arguments = (index, fate);
    match way {
        Way::Run => task.run(polled, arguments).await,
        Way::Open => task.open(polled, arguments).await?.wait().await,
        Way::RunBlocking => task.run_blocking(plain, arguments).await,
        Way::OpenBlocking => task.open_blocking(plain, arguments).await?.await,
        #[cfg(feature = "smol")]
        Way::RunSmol => task.runtime::<tokio_run_in_process::Smol>().run(on_smol, arguments).await,
        #[cfg(feature = "smol")]
        Way::OpenSmol => task.runtime::<tokio_run_in_process::Smol>().open(on_smol, arguments).await?.await,
    }
}

/// Whether the outcome is the one that the task must have.
pub(crate) fn is_right(index: u64, fate: Fate, outcome: &Result<u64, Error>) -> bool {
    match (fate, outcome) {
        (Fate::Return | Fate::Cancelled, Ok(found)) => *found == value(index),
        (Fate::Panic, Err(e)) => e.panic().is_some_and(|report| report.message() == format!("panic of {index}")),
        (Fate::Exit, Err(e)) => e.exit_code() == Some(exit_code(index)),
        (Fate::Crash, Err(e)) => e.signal() == Some(crash_signal(index)),
        _ => false,
    }
}

fn g107_ten_thousand_tasks_and_what_can_befall_them() {
    println!("the seed is {SEED:#x}");
    // SAFETY: there is one thread. A debug build takes long to print a backtrace, and nobody reads it.
    unsafe { std::env::remove_var("RUST_BACKTRACE") };
    undisturbed_with(Zygote::builder().max_processes(64), |zygote| async move {
        let quiet = zygote.task().stderr(Stdio::null());
        let mut random = Random(SEED);
        let mut fates = BTreeMap::<_, u32>::new();
        let mut gone = 0_u32;
        let mut running = JoinSet::new();
        for index in 0..10_000 {
            // Some more than have their turn: the queue is cancelled in, too.
            if running.len() == 80 {
                gone += u32::from(running.join_next().await.unwrap().unwrap());
            }
            let (fate, way, moment) = (Fate::draw(&mut random), Way::draw(&mut random), Moment::draw(&mut random));
            *fates.entry(fate).or_default() += 1;
            let task = quiet.clone();
            running.spawn(async move {
                let call = call(task, index, way, fate);
                let outcome = if fate == Fate::Cancelled {
                    tokio::select! {
                        outcome = call => outcome,
                        () = moment.come() => return true,
                    }
                } else {
                    call.await
                };
                let right = is_right(index, fate, &outcome);
                assert!(right, "task {index}, {fate:?} by {way:?}, {moment:?}: {outcome:?}; seed {SEED:#x}");
                false
            });
        }
        while let Some(was_cancelled) = running.join_next().await {
            gone += u32::from(was_cancelled.unwrap());
        }
        println!("{fates:?}, of the cancelled ones {gone} were");
        assert!(gone > 0 && gone <= fates[&Fate::Cancelled], "{gone} of {fates:?}");
    });
}

/// Polls a future once, so that it is in the queue, and gives it to the runtime.
async fn enqueue<T: Send + 'static>(
    mut future: impl Future<Output = T> + Send + Unpin + 'static,
) -> tokio::task::JoinHandle<T> {
    match poll_fn(|context| Poll::Ready(Pin::new(&mut future).poll(context))).await {
        Poll::Pending => tokio::spawn(future),
        // This thread was slow.
        Poll::Ready(outcome) => tokio::spawn(std::future::ready(outcome)),
    }
}

/// Adds a task's number to a file, where the numbers are in the order in which the tasks began.
fn sign_in(path: String, number: u32) -> u32 {
    let mut file = std::fs::File::options().append(true).open(path).unwrap();
    file.write_all(&number.to_le_bytes()).unwrap();
    number
}

fn signed_in(path: &str) -> Vec<u32> {
    let bytes = std::fs::read(path).unwrap();
    bytes.chunks(4).map(|number| u32::from_le_bytes(number.try_into().unwrap())).collect()
}

fn two_thousand_tasks_start_in_the_order_they_came() {
    const AT_A_TIME: usize = tokio_run_in_process::MAX_PROCESSES;
    let path = scratch("order");
    std::fs::write(&path, "").unwrap();
    undisturbed(|| async {
        let mut tasks = Vec::new();
        for number in 0..2000 {
            tasks.push(enqueue(run_blocking_in_process(sign_in, (path.clone(), number))).await);
        }
        for (number, task) in (0..).zip(tasks) {
            assert_eq!(task.await.unwrap().unwrap(), number);
        }
        let order = signed_in(&path);
        // All that came before have had their turn: they are done, or among the others that run now.
        for (place, &number) in order.iter().enumerate() {
            assert!(place + AT_A_TIME > number as usize, "{number} was the {place}th to begin: {order:?}");
        }
        let mut sorted = order;
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..2000), "each began once");
    });
    std::fs::remove_file(path).unwrap();
}

pub(crate) async fn rest() {
    std::future::pending().await
}

fn spin() {
    loop {
        std::hint::spin_loop();
    }
}

fn refuse_sigterm() {
    // SAFETY: an ignored signal needs no handler.
    unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
    std::thread::sleep(Duration::from_secs(600));
}

fn handles_dropped_all_at_once() {
    let builder = Zygote::builder().max_processes(200).grace_period(Duration::from_millis(300));
    undisturbed_with(builder, |zygote| async move {
        let mut opening = JoinSet::new();
        for number in 0..200 {
            let zygote = zygote.clone();
            opening.spawn(async move {
                match number {
                    0..150 => zygote.open_in_process(rest, ()).await.unwrap(),
                    150..195 => zygote.open_blocking_in_process(refuse_sigterm, ()).await.unwrap(),
                    _ => zygote.open_blocking_in_process(spin, ()).await.unwrap(),
                }
            });
        }
        let all = opening.join_all().await;
        assert_eq!(zygote.available_processes(), 0);
        drop(all);
        // One more has to wait for a process to be gone, not only for its handle.
        assert_eq!(zygote.run_in_process(async |n: u8| n, 3).await.unwrap(), 3);
    });
}

fn futures_aborted_all_at_once() {
    undisturbed(|| async {
        let mut tasks = JoinSet::new();
        for _ in 0..1000 {
            tasks.spawn(run_in_process(rest, ()));
            tasks.spawn(async { open_in_process(rest, ()).await?.wait().await });
        }
        // One more, which has its turn when others are gone.
        let last = enqueue(run_in_process(async |n: u8| n, 3)).await;
        tasks.abort_all();
        assert_eq!(last.await.unwrap().unwrap(), 3);
        while let Some(task) = tasks.join_next().await {
            assert!(task.unwrap_err().is_cancelled());
        }
    });
}

fn leave() {
    // SAFETY: it ends the process.
    unsafe { libc::_exit(7) }
}

fn e71_very_short_children_have_exact_statuses() {
    undisturbed(|| async {
        let mut children = JoinSet::new();
        for number in 0..300 {
            children.spawn(async move {
                let error = match number % 4 {
                    0 => run_in_process(async || leave(), ()).await.unwrap_err(),
                    1 => run_blocking_in_process(leave, ()).await.unwrap_err(),
                    way => {
                        let process = match way {
                            2 => open_in_process(async || leave(), ()).await.unwrap(),
                            _ => open_blocking_in_process(leave, ()).await.unwrap(),
                        };
                        let (status, usage) = process.exited().await;
                        assert_eq!(status, ExitStatus::Exited(7));
                        assert!(usage.is_some());
                        process.wait().await.unwrap_err()
                    }
                };
                assert!(matches!(error, Error::Exited { code: 7, .. }), "{number}: {error:?}");
            });
        }
        children.join_all().await;
    });
}
