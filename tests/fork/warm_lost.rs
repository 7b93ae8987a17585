//! Warm workers that were killed or stopped, and what ends them: their handle, their program, their zygote.

use std::{
    io::{BufRead, BufReader},
    process::Stdio as StdStdio,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio_run_in_process::{Error, Signal, Zygote};

use crate::{
    harness::{children, eventually, helper, multi_thread},
    oracle::{no_core_files, undisturbed_with},
    orphans::Life,
    tools::{Notes, Random, note},
    warm::{Program, all_stand, all_stand_beside, burst},
};

crate::cases![
    killed_spares_are_not_handed_out,
    stopped_spares_are_not_waited_for,
    spares_end_with_the_handle,
    spares_end_with_the_program,
    spares_end_with_the_zygote;
    60 => no_task_runs_twice_while_spares_are_killed,
];
crate::helpers![keeps_spares];

fn killed_spares_are_not_handed_out() {
    undisturbed_with(Zygote::builder().warm(8), |zygote| async move {
        for round in 0..20_u32 {
            let stood = all_stand(&zygote, 8).await;
            stood.iter().for_each(|&pid| Life::of(pid).kill());
            if round % 2 == 0 {
                let tasks: Vec<_> = (0..8)
                    .map(|n| tokio::spawn(zygote.run_in_process(async |n: u32| (n, std::process::id()), n)))
                    .collect();
                for (n, task) in (0..).zip(tasks) {
                    let (value, pid) = task.await.unwrap().unwrap();
                    assert!(value == n && !stood.contains(&pid));
                }
            } else {
                for n in 0..8 {
                    let process = zygote.open_in_process(async |n: u32| n, n).await.unwrap();
                    assert!(!stood.contains(&process.pid()));
                    assert_eq!(process.wait().await.unwrap(), n);
                }
            }
        }
    });
}

fn no_task_runs_twice_while_spares_are_killed() {
    let notes = Notes::new("begun");
    undisturbed_with(Zygote::builder().warm(8), |zygote| {
        let path = notes.path();
        async move {
            let done = Arc::new(AtomicBool::new(false));
            let killer = {
                let (done, zygote) = (done.clone(), zygote.pid());
                std::thread::spawn(move || {
                    let (mut random, mut killed) = (Random::new(7), 0);
                    while !done.load(Ordering::Relaxed) {
                        let all = children(zygote);
                        if !all.is_empty() {
                            let pid = all[random.below(all.len() as u64) as usize];
                            // Of a process that is gone by now: nothing happens.
                            // SAFETY: touches no memory.
                            killed += i32::from(unsafe { libc::kill(i32::try_from(pid).unwrap(), libc::SIGKILL) } == 0);
                        }
                        std::thread::sleep(Duration::from_micros(random.below(2000)));
                    }
                    killed
                })
            };
            let begins = async |path: String, n: u64| {
                note(&path, &format!(" {n} "));
                n * 3
            };
            let start = Instant::now();
            let mut outcomes = Vec::new();
            while outcomes.len() < 50 || start.elapsed() < Duration::from_secs(2) {
                let n = outcomes.len() as u64;
                outcomes.push(if n % 2 == 0 {
                    zygote.run_in_process(begins, (path.clone(), n)).await
                } else {
                    match zygote.open_in_process(begins, (path.clone(), n)).await {
                        Ok(process) => process.wait().await,
                        Err(error) => Err(error),
                    }
                });
            }
            done.store(true, Ordering::Relaxed);
            let killed = killer.join().unwrap();
            let text = std::fs::read_to_string(&path).unwrap();
            let mut signaled = 0;
            for (n, outcome) in outcomes.iter().enumerate() {
                let begun = text.matches(&format!(" {n} ")).count();
                match outcome {
                    Ok(value) => assert_eq!((*value, begun), (n as u64 * 3, 1), "task {n}"),
                    Err(Error::Signaled { signal: Signal::KILL, .. }) => {
                        signaled += 1;
                        assert!(begun <= 1, "task {n} began {begun} times");
                    }
                    // It lost three warm ones and a cold one.
                    Err(Error::EndedEarly { .. }) => assert_eq!(begun, 0, "task {n}"),
                    Err(error) => panic!("task {n}: {error:?}"),
                }
            }
            println!("{} tasks, {killed} kills, {signaled} of them killed a task", outcomes.len());
            assert!(killed > 20 && signaled * 2 < outcomes.len());
        }
    });
}

fn stopped_spares_are_not_waited_for() {
    // Whoever waited for a stopped one would not be done before the case's deadline.
    let patient = Zygote::builder().warm(4).startup_timeout(Duration::from_secs(600));
    undisturbed_with(patient, |zygote| async move {
        for round in 0..6 {
            let stood = all_stand(&zygote, 4).await;
            let lives: Vec<_> = stood.iter().map(|&pid| Life::of(pid)).collect();
            lives.iter().for_each(|life| life.signal(libc::SIGSTOP));
            if round % 2 == 0 {
                // At once, before anybody could have heard of it.
                burst(&zygote, 8).await;
            }
            for n in 0..8_u8 {
                let process = zygote.open_in_process(async |n: u8| n, n).await.unwrap();
                assert!(!stood.contains(&process.pid()));
                assert_eq!(process.wait().await.unwrap(), n);
            }
            eventually("the stopped ones are gone", || lives.iter().all(|life| life.is_over())).await;
        }
    });
}

fn spares_end_with_the_handle() {
    let first = Zygote::builder().warm(4).start().unwrap();
    let second = Zygote::builder().warm(4).start().unwrap();
    multi_thread().block_on(async {
        assert_eq!(second.run_in_process(async |n: u8| n, 1).await.unwrap(), 1);
        let others = [first.pid(), second.pid()];
        // The first has not had a task, and nobody serves it.
        for zygote in [second, first] {
            let pids = all_stand_beside(&zygote, 4, &others).await;
            let lives: Vec<_> = pids.into_iter().chain([zygote.pid()]).map(Life::of).collect();
            let copy = zygote.clone();
            drop(zygote);
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert!(lives.iter().all(|life| !life.is_over()), "there is a handle left");
            drop(copy);
            eventually("they are gone", || lives.iter().all(|life| life.is_over())).await;
        }
    });
}

/// A program that has spares and says which.
fn keeps_spares() {
    no_core_files();
    let zygote = Zygote::builder().warm(6).start().unwrap();
    multi_thread().block_on(async {
        assert_eq!(zygote.run_in_process(async |n: u8| n, 1).await.unwrap(), 1);
        let pids = all_stand(&zygote, 6).await;
        println!("{} {}", zygote.pid(), pids.iter().map(u32::to_string).collect::<Vec<_>>().join(" "));
        std::future::pending::<()>().await
    });
}

fn spares_end_with_the_program() {
    for (stops, both) in [(false, false), (true, false), (false, true)] {
        let mut program = Program(helper("keeps_spares").stdout(StdStdio::piped()).spawn().unwrap());
        let mut line = String::new();
        BufReader::new(program.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let lives: Vec<_> = line.split_whitespace().map(|pid| Life::of(pid.parse().unwrap())).collect();
        assert_eq!(lives.len(), 7);
        assert!(lives.iter().all(|life| !life.is_over()));
        if stops {
            lives[1..].iter().for_each(|life| life.signal(libc::SIGSTOP));
        }
        if both {
            lives[0].kill();
        }
        program.0.kill().unwrap();
        let is_over = || lives.iter().all(|life| life.is_over());
        multi_thread().block_on(eventually("they are gone", is_over));
    }
}

fn spares_end_with_the_zygote() {
    let zygote = Zygote::builder().warm(6).start().unwrap();
    multi_thread().block_on(async {
        assert_eq!(zygote.run_in_process(async |n: u8| n, 1).await.unwrap(), 1);
        let lives: Vec<_> = all_stand(&zygote, 6).await.into_iter().map(Life::of).collect();
        Life::of(zygote.pid()).kill();
        for n in 0..20 {
            assert_eq!(zygote.run_in_process(async |n: u8| n, n).await.unwrap(), n);
        }
        eventually("the spares are gone", || lives.iter().all(|life| life.is_over())).await;
        let others = all_stand(&zygote, 6).await;
        assert!(others.iter().all(|&pid| !lives.contains(&Life::of(pid))));
    });
}
