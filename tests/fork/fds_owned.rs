//! Whose descriptors are that were given away, how many there may be, and what happens where there cannot be more.

use std::{
    fs::File,
    io::{IoSlice, Seek, SeekFrom, Write},
    os::{fd::AsRawFd, unix::net::UnixStream},
    time::Duration,
};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_run_in_process::{
    Bytes, Error, Fd, Pool, Signal, Stdio, Task, Zygote, default_zygote, open_in_process, run_blocking_in_process,
    run_in_process,
};

use crate::{
    bytes::made,
    fds::{all_of, fd, stream},
    harness::{begin, children, eventually, skip},
    options::spawn_error,
    oracle::{scratch, undisturbed, undisturbed_with},
    orphans::Life,
    tools::{Notes, note},
};

crate::cases![
    what_the_worker_closes_is_closed,
    a_task_that_does_not_take_it,
    a_worker_that_dies_before_it_begins,
    a_worker_of_a_pool_that_dies_before_it_begins,
    at_our_limit_of_descriptors,
    at_the_workers_limit_of_descriptors,
    at_the_users_limit_of_descriptors_on_their_way;
    90 => as_many_as_there_may_be,
    a_process_for_each_connection,
];

/// How many descriptors this process, and what it starts, may have from now on: as many as are allowed, if not said.
fn set_descriptors(count: Option<u64>) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a live rlimit.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }, 0);
    limit.rlim_cur = count.unwrap_or(limit.rlim_max);
    if limit.rlim_cur > limit.rlim_max {
        skip("the limit of descriptors is low");
    }
    // SAFETY: as above.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
}

/// Closes it and goes on until it is told to end.
async fn closes_it(stream: Fd<UnixStream>, path: String) {
    drop(stream);
    while !std::fs::read_to_string(&path).unwrap_or_default().contains("closed") {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn plain_closes_it(stream: Fd<UnixStream>, path: String) {
    drop(stream);
    while !std::fs::read_to_string(&path).unwrap_or_default().contains("closed") {
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn what_the_worker_closes_is_closed() {
    undisturbed(|| async {
        let pool = Pool::builder().workers(1).build().unwrap();
        for way in 0..6 {
            let notes = Notes::new("closes");
            let (ours, theirs) = stream();
            let arguments = (fd(theirs), notes.path());
            let task = Task::new().timeout(Duration::from_secs(60));
            let run = match way {
                0 => tokio::spawn(run_in_process(closes_it, arguments)),
                1 => tokio::spawn(run_blocking_in_process(plain_closes_it, arguments)),
                2 => tokio::spawn(task.run(closes_it, arguments)),
                3 => {
                    let process = open_in_process(closes_it, arguments).await.unwrap();
                    tokio::spawn(async move { process.wait().await })
                }
                4 => {
                    let pool = pool.clone();
                    tokio::spawn(async move { pool.run(closes_it, arguments).await })
                }
                _ => {
                    let opened = pool.open(closes_it, arguments).await.unwrap();
                    tokio::spawn(async move { opened.wait().await })
                }
            };
            // The end of the stream, while the task still runs.
            assert_eq!(all_of(ours).await, "", "way {way}");
            assert!(!run.is_finished(), "way {way}");
            note(&notes.path(), "closed");
            run.await.unwrap().unwrap();
        }
        drop(pool);
    });
}

fn a_task_that_does_not_take_it() {
    undisturbed(|| async {
        let pool = Pool::builder().workers(1).build().unwrap();
        let (ours, theirs) = stream();
        run_in_process(async |_: Fd<UnixStream>| (), fd(theirs)).await.unwrap();
        assert_eq!(all_of(ours).await, "");
        let (ours, theirs) = stream();
        pool.run(async |_: Fd<UnixStream>| (), fd(theirs)).await.unwrap();
        assert_eq!(all_of(ours).await, "");
        // One that was never run, and one that ended badly.
        let (ours, theirs) = stream();
        drop(run_in_process(async |_: Fd<UnixStream>| (), fd(theirs)));
        assert_eq!(all_of(ours).await, "");
        let (ours, theirs) = stream();
        let aborts = async |_: Fd<UnixStream>| -> () { std::process::abort() };
        assert_eq!(run_in_process(aborts, fd(theirs)).await.unwrap_err().signal(), Some(Signal::ABRT));
        assert_eq!(all_of(ours).await, "");
        drop(pool);
    });
}

async fn positions(files: Vec<Fd<File>>) -> Vec<u64> {
    files.into_iter().map(|file| file.into_inner().unwrap().stream_position().unwrap()).collect()
}

/// Files that can be told apart, by where they are.
fn files(path: &str, count: usize) -> Vec<Fd<File>> {
    let open = |n: usize| {
        let mut file = File::open(path).unwrap();
        file.seek(SeekFrom::Start(n as u64)).unwrap();
        Fd::from(file)
    };
    (0..count).map(open).collect()
}

fn as_many_as_there_may_be() {
    set_descriptors(Some(10_000));
    undisturbed(|| async {
        let path = scratch("many");
        File::create(&path).unwrap();
        let pool = Pool::builder().workers(1).build().unwrap();
        let task = Task::new().stderr(Stdio::null());
        for count in [0, 1, 250, 252, 253, 254, 256, 505, 506, 507, 508, 759, 760, 4095, 4096] {
            let right: Vec<u64> = (0..count as u64).collect();
            assert!(run_in_process(positions, files(&path, count)).await.unwrap() == right, "{count}");
            // With others that are there before.
            assert!(task.run(positions, files(&path, count)).await.unwrap() == right, "{count}");
            assert!(pool.run(positions, files(&path, count)).await.unwrap() == right, "{count}");
        }
        let process = open_in_process(positions, files(&path, 300)).await.unwrap();
        assert_eq!(process.wait().await.unwrap().len(), 300);
        for error in [
            run_in_process(positions, files(&path, 4097)).await.unwrap_err(),
            open_in_process(positions, files(&path, 4097)).await.unwrap_err(),
            pool.run(positions, files(&path, 4097)).await.unwrap_err(),
        ] {
            let Error::Encode { reason, .. } = &error else { panic!("{error:?}") };
            assert!(reason.contains("4096") && reason.contains("descriptors"), "{reason}");
        }
        drop(pool);
        std::fs::remove_file(path).unwrap();
    });
}

async fn says(stream: Fd<UnixStream>, word: String) {
    stream.into_inner().unwrap().write_all(word.as_bytes()).unwrap();
}

async fn says_after(stream: Fd<UnixStream>, word: String, _: Bytes) {
    says(stream, word).await;
}

fn a_worker_that_dies_before_it_begins() {
    undisturbed_with(Zygote::builder().warm(1), |zygote| async move {
        // More than fits: it has the descriptors and waits for the rest when it is killed.
        let much = Bytes::from(made(4 << 20));
        for n in 0..10 {
            let stands = || zygote.metrics().warm == 1 && children(zygote.pid()).len() == 1;
            eventually("one stands", stands).await;
            let spare = Life::of(children(zygote.pid())[0]);
            let (ours, theirs) = stream();
            let run = begin(zygote.run_in_process(says_after, (fd(theirs), n.to_string(), much.clone()))).await;
            spare.kill();
            run.await.unwrap();
            assert_eq!(all_of(ours).await, n.to_string(), "another one had it");
        }
    });
}

fn a_worker_of_a_pool_that_dies_before_it_begins() {
    undisturbed(|| async {
        let pool = Pool::builder().workers(1).build().unwrap();
        for n in 0..10 {
            let worker = Life::of(pool.run(async || std::process::id(), ()).await.unwrap());
            worker.kill();
            eventually("it is dead", || worker.is_over()).await;
            let (ours, theirs) = stream();
            pool.run(says, (fd(theirs), n.to_string())).await.unwrap();
            assert_eq!(all_of(ours).await, n.to_string(), "another one had it");
        }
        drop(pool);
    });
}

async fn echoes(connection: Fd<TcpStream>) {
    let mut connection = connection.into_inner().unwrap();
    let (mut reader, mut writer) = connection.split();
    tokio::io::copy(&mut reader, &mut writer).await.unwrap();
}

/// How many connections; more where somebody wants to be sure.
fn connections() -> usize {
    std::env::var("CONNECTIONS").map_or(2000, |count| count.parse().unwrap())
}

fn a_process_for_each_connection() {
    undisturbed(|| async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let count = connections();
        let server = tokio::spawn(async move {
            let mut tasks = tokio::task::JoinSet::new();
            for _ in 0..count {
                let (connection, _) = listener.accept().await.unwrap();
                tasks.spawn(run_in_process(echoes, fd(connection)));
            }
            while let Some(outcome) = tasks.join_next().await {
                outcome.unwrap().unwrap();
            }
        });
        let mut clients = tokio::task::JoinSet::new();
        for number in 0..count {
            if clients.len() == 32 {
                clients.join_next().await.unwrap().unwrap();
            }
            clients.spawn(async move {
                let mut connection = TcpStream::connect(address).await.unwrap();
                let text = format!("number {number}");
                connection.write_all(text.as_bytes()).await.unwrap();
                connection.shutdown().await.unwrap();
                let mut came = String::new();
                // The end comes only if no copy of the connection is left.
                connection.read_to_string(&mut came).await.unwrap();
                assert_eq!(came, text);
            });
        }
        while let Some(client) = clients.join_next().await {
            client.unwrap();
        }
        server.await.unwrap();
    });
}

fn is_at_a_limit(error: &Error, errno: i32) {
    let (step, source) = spawn_error(error);
    assert_eq!(source.raw_os_error(), Some(errno), "{step}: {error:?}");
    assert!(error.is_retryable());
}

/// A task that writes to a stream, each time by another way: its outcome, and what was heard.
async fn each_way(pool: &Pool) -> Vec<Result<(), Error>> {
    let mut outcomes = Vec::new();
    for way in 0..4 {
        let (ours, theirs) = stream();
        let arguments = (fd(theirs), "heard".to_owned());
        let outcome = way_of(way, pool, arguments).await;
        assert_eq!(all_of(ours).await, if outcome.is_ok() { "heard" } else { "" }, "way {way}");
        outcomes.push(outcome);
    }
    outcomes
}

async fn way_of(way: usize, pool: &Pool, arguments: (Fd<UnixStream>, String)) -> Result<(), Error> {
    match way {
        0 => run_in_process(says, arguments).await,
        1 => open_in_process(says, arguments).await?.wait().await,
        2 => {
            let plain = |stream: Fd<UnixStream>, word: String| {
                stream.into_inner().unwrap().write_all(word.as_bytes()).unwrap();
            };
            run_blocking_in_process(plain, arguments).await
        }
        _ => pool.run(says, arguments).await,
    }
}

fn at_our_limit_of_descriptors() {
    undisturbed(|| async {
        let pool = Pool::builder().workers(1).build().unwrap();
        pool.run(async || (), ()).await.unwrap();
        for _ in 0..3 {
            let pairs: Vec<_> = (0..20).map(|_| stream()).collect();
            set_descriptors(Some(3));
            let mut outcomes = Vec::new();
            for (n, (ours, theirs)) in pairs.into_iter().enumerate() {
                let outcome = way_of(n % 4, &pool, (fd(theirs), "heard".to_owned())).await;
                outcomes.push((ours, outcome));
            }
            set_descriptors(None);
            let mut failed = 0;
            for (ours, outcome) in outcomes {
                // A worker that stood ready needs no descriptor of ours.
                let heard = all_of(ours).await;
                match outcome {
                    Ok(()) => assert_eq!(heard, "heard"),
                    Err(error) => {
                        is_at_a_limit(&error, libc::EMFILE);
                        assert_eq!(heard, "");
                        failed += 1;
                    }
                }
            }
            assert!(failed > 0, "there are not twenty warm workers");
            each_way(&pool).await.into_iter().for_each(|outcome| outcome.unwrap());
        }
        drop(pool);
    });
}

fn at_the_workers_limit_of_descriptors() {
    // The zygote, and so its workers, keep the limit.
    set_descriptors(Some(40));
    undisturbed(|| async {
        set_descriptors(None);
        let path = scratch("few");
        File::create(&path).unwrap();
        let pool = Pool::builder().workers(1).build().unwrap();
        for count in [50, 253, 254, 600] {
            let outcomes = [
                run_in_process(positions, files(&path, count)).await,
                Task::new().stdout(Stdio::null()).run(positions, files(&path, count)).await,
                match open_in_process(positions, files(&path, count)).await {
                    Ok(process) => process.wait().await,
                    Err(error) => Err(error),
                },
                pool.run(positions, files(&path, count)).await,
            ];
            for outcome in outcomes {
                is_at_a_limit(&outcome.unwrap_err(), libc::EMFILE);
            }
            assert_eq!(run_in_process(positions, files(&path, 10)).await.unwrap().len(), 10);
            assert_eq!(pool.run(positions, files(&path, 10)).await.unwrap().len(), 10);
        }
        drop(pool);
        std::fs::remove_file(path).unwrap();
    });
}

/// Becomes a user of whom nothing else runs, with the limits of ordinary users.
fn become_nobody() {
    const NOBODY: u32 = 54_321;
    // SAFETY: touches no memory.
    if unsafe { libc::geteuid() } == 0 {
        // SAFETY: touches no memory.
        assert_eq!(unsafe { libc::setresuid(NOBODY, NOBODY, NOBODY) }, 0);
        // SAFETY: touches no memory. So that /proc shows its descriptors.
        assert_eq!(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1) }, 0);
    }
}

/// Sends so many descriptors that nobody receives.
fn send_away(count: usize, line: &UnixStream) {
    let null = File::open("/dev/null").unwrap();
    for _ in 0..count {
        let rights = [ControlMessage::ScmRights(&[null.as_raw_fd()])];
        sendmsg::<()>(line.as_raw_fd(), &[IoSlice::new(b"x")], &rights, MsgFlags::empty(), None).unwrap();
    }
}

fn at_the_users_limit_of_descriptors_on_their_way() {
    become_nobody();
    undisturbed(|| async {
        let pool = Pool::builder().workers(1).build().unwrap();
        pool.run(async || (), ()).await.unwrap();
        for _ in 0..3 {
            let line = stream();
            send_away(201, &line.0);
            set_descriptors(Some(200));
            for outcome in each_way(&pool).await {
                is_at_a_limit(&outcome.unwrap_err(), libc::ETOOMANYREFS);
            }
            // Who has nothing to send is not disturbed where a worker stands ready.
            if default_zygote().unwrap().metrics().warm > 0 {
                assert_eq!(run_in_process(async || 5, ()).await.unwrap(), 5);
            }
            set_descriptors(None);
            drop(line);
            each_way(&pool).await.into_iter().for_each(|outcome| outcome.unwrap());
        }
        drop(pool);
    });
}
