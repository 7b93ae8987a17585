//! What comes back from a task, for every runtime of the worker: values and errors.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _, ser::Error as _};
use tokio_run_in_process::{
    CapturedError, Coded, Error, ExitStatus, Process, Signal, Stdio, Task, default_zygote, worker,
};

use crate::{
    harness::{children, without_warm_workers},
    oracle::{scratch, undisturbed},
    seed::{open_everywhere, run_everywhere, runtimes},
};

crate::cases![
    s01_a_side_effect_has_happened_when_run_returns,
    s02_the_value_arrives,
    s03_an_error_arrives_with_its_type_and_message,
    s04_variables_of_the_worker_are_its_own,
    s12_arguments_that_do_not_encode,
    s14_an_error_never_hangs_the_caller,
    s15_a_result_that_does_not_decode,
    s16_a_task_that_cancels_itself,
];

fn touch(path: String) {
    std::fs::write(path, "").unwrap();
}

fn s01_a_side_effect_has_happened_when_run_returns() {
    undisturbed(|| async {
        let path = scratch("touched");
        for (runtime, task) in runtimes(&Task::new()) {
            task.run(async |path: String| touch(path), path.clone()).await.unwrap();
            std::fs::remove_file(&path).expect(runtime);
        }
        Task::new().run_blocking(touch, path.clone()).await.unwrap();
        std::fs::remove_file(&path).expect("blocking");
    });
}

fn s02_the_value_arrives() {
    undisturbed(|| async {
        let value = (1_u64, "text".to_owned(), Some(vec![1.5_f64, -0.0]), ());
        type Value = (u64, String, Option<Vec<f64>>, ());
        let polled = async |a: u64, b: String, c: Option<Vec<f64>>, d: ()| -> Value { (a, b, c, d) };
        let plain = |a: u64, b: String, c: Option<Vec<f64>>, d: ()| -> Value { (a, b, c, d) };
        for (runtime, result) in run_everywhere(&Task::new(), polled, plain, value.clone()).await {
            assert_eq!(result.unwrap(), value, "{runtime}");
        }
        // One that no socket holds at once.
        let large = |length: usize| (0..length).map(|n| n as u8).collect::<Vec<u8>>();
        for (runtime, result) in run_everywhere(&Task::new(), async move |n: usize| large(n), large, 3 << 20).await {
            assert_eq!(result.unwrap(), large(3 << 20), "{runtime}");
        }
    });
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Refusal {
    TooBig { limit: u64 },
    Other(String),
}

fn refuse(n: u64) -> Result<u64, Refusal> {
    match n {
        0..10 => Ok(n),
        10..20 => Err(Refusal::TooBig { limit: 10 }),
        _ => Err(Refusal::Other(format!("{n} is out of the question"))),
    }
}

fn parse(text: String) -> Result<i32, CapturedError> {
    Ok(text.parse::<i32>()?)
}

fn s03_an_error_arrives_with_its_type_and_message() {
    undisturbed(|| async {
        for n in [9, 10, 20] {
            for (runtime, result) in run_everywhere(&Task::new(), async |n: u64| refuse(n), refuse, n).await {
                assert_eq!(result.unwrap(), refuse(n), "{runtime}");
            }
        }
        for (runtime, result) in run_everywhere(&Task::new(), async |t: String| parse(t), parse, "x".to_owned()).await {
            let error = result.unwrap().unwrap_err();
            assert_eq!(error.type_name(), "core::num::error::ParseIntError", "{runtime}");
            assert_eq!(error.to_string(), "invalid digit found in string", "{runtime}");
        }
        // A panic is an error of the process, not of the task's own type.
        let fails = |n: u64| -> u64 { panic!("not {n}") };
        for (runtime, result) in run_everywhere(&Task::new(), async move |n: u64| fails(n), fails, 7).await {
            assert_eq!(result.unwrap_err().panic().unwrap().message(), "not 7", "{runtime}");
        }
    });
}

fn variables() -> (Option<String>, bool) {
    (std::env::var("SEED_S04").ok(), std::env::var_os("PATH").is_some())
}

fn s04_variables_of_the_worker_are_its_own() {
    undisturbed(|| async {
        let parents = variables();
        assert_eq!(parents, (None, true));
        let task = Task::new().env("SEED_S04", "seen").env_remove("PATH");
        for (runtime, result) in run_everywhere(&task, async || variables(), variables, ()).await {
            assert_eq!(result.unwrap(), (Some("seen".to_owned()), false), "{runtime}");
        }
        for (runtime, process) in open_everywhere(&task, async || variables(), variables, ()).await {
            assert_eq!(process.wait().await.unwrap(), (Some("seen".to_owned()), false), "{runtime}");
        }
        assert_eq!(variables(), parents);
        for (runtime, result) in run_everywhere(&Task::new(), async || variables(), variables, ()).await {
            assert_eq!(result.unwrap(), parents, "{runtime}: the next task has nothing of them");
        }
    });
}

/// Does not encode.
#[derive(Clone)]
struct Unwilling;

impl Serialize for Unwilling {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(S::Error::custom("it does not want to"))
    }
}

impl<'de> Deserialize<'de> for Unwilling {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <()>::deserialize(deserializer).map(|()| Self)
    }
}

fn s12_arguments_that_do_not_encode() {
    without_warm_workers();
    undisturbed(|| async {
        let path = scratch("never-touched");
        let zygote = default_zygote().unwrap();
        let available = zygote.available_processes();
        // It cannot be asked for anything, so nothing was.
        signal(zygote.pid(), libc::SIGSTOP);
        let polled = async |path: String, _: Unwilling| touch(path);
        let plain = |path: String, _: Unwilling| touch(path);
        let arguments = (path.clone(), Unwilling);
        let mut errors = Vec::new();
        for (runtime, result) in run_everywhere(&Task::new(), polled, plain, arguments.clone()).await {
            errors.push((runtime, result.unwrap_err()));
        }
        for (runtime, task) in runtimes(&Task::new().stdin(Stdio::piped()).stdout(Stdio::piped())) {
            errors.push((runtime, task.open(polled, arguments.clone()).await.unwrap_err()));
        }
        errors.push(("blocking", Task::new().open_blocking(plain, arguments).await.unwrap_err()));
        for (runtime, error) in errors {
            assert!(matches!(&error, Error::Encode { reason, .. } if reason == "it does not want to"), "{runtime}");
            assert_eq!(error.task().unwrap().pid(), None, "{runtime}");
            assert!(!error.is_retryable(), "{runtime}");
            let text = error.to_string();
            assert!(text.contains("the arguments of task") && text.contains("do not encode"), "{runtime}: {text}");
        }
        assert_eq!(zygote.available_processes(), available);
        assert_eq!(children(zygote.pid()), [0; 0]);
        signal(zygote.pid(), libc::SIGCONT);
        assert!(!std::fs::exists(path).unwrap());
    });
}

fn signal(pid: u32, signal: i32) {
    // SAFETY: touches no memory.
    assert_eq!(unsafe { libc::kill(pid.try_into().unwrap(), signal) }, 0);
}

pub(crate) fn fail(how: u32) -> Result<(), String> {
    match how {
        0 => Err("an error".to_owned()),
        1 => panic!("a panic"),
        2 => std::process::exit(1),
        _ => std::process::abort(),
    }
}

fn s14_an_error_never_hangs_the_caller() {
    undisturbed(|| async {
        for how in 0..4 {
            let task = Task::new();
            let all = run_everywhere(&task, async |how: u32| fail(how), fail, how);
            let results = tokio::time::timeout(Duration::from_secs(10), all).await.expect("no caller hangs");
            for (runtime, result) in results {
                let right = match (how, &result) {
                    (0, Ok(Err(message))) => message == "an error",
                    (1, Err(error)) => error.is_panic(),
                    (2, Err(error)) => error.exit_code() == Some(1),
                    (3, Err(error)) => error.signal() == Some(Signal::ABRT),
                    _ => false,
                };
                assert!(right, "{runtime}: {result:?}");
            }
        }
    });
}

/// Decodes in a worker only.
#[derive(Debug)]
struct Foreign;

impl Serialize for Foreign {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        5_u8.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Foreign {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        u8::deserialize(deserializer)?;
        if worker::is_worker() { Ok(Self) } else { Err(D::Error::custom("not understood here")) }
    }
}

/// Encodes as one type and decodes as another.
#[derive(Debug)]
struct Twisted;

impl Serialize for Twisted {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        "some text".serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Twisted {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        bool::deserialize(deserializer).map(|_| Self)
    }
}

/// Says twice, and after its end, that its result does not decode.
async fn does_not_decode<T>(runtime: &str, process: Process<T>, why: &str)
where
    T: serde::de::DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    for _ in 0..2 {
        let error = process.wait().await.unwrap_err();
        let Error::Decode { what: Coded::Result, reason, task, .. } = &error else { panic!("{runtime}: {error:?}") };
        assert!(reason.contains(why), "{runtime}: {reason}");
        assert_eq!(task.pid(), Some(process.pid()), "{runtime}");
        // The worker did its part.
        assert_eq!(process.exited().await.0, ExitStatus::Exited(0), "{runtime}");
    }
    assert!(matches!(process.try_wait(), Some(Err(Error::Decode { what: Coded::Result, .. }))), "{runtime}");
}

fn s15_a_result_that_does_not_decode() {
    undisturbed(|| async {
        for (runtime, result) in run_everywhere(&Task::new(), async || Foreign, || Foreign, ()).await {
            let error = result.unwrap_err();
            assert!(matches!(error, Error::Decode { what: Coded::Result, .. }), "{runtime}: {error:?}");
            assert!(error.to_string().contains("does not decode: not understood here"), "{runtime}: {error}");
        }
        for (runtime, process) in open_everywhere(&Task::new(), async || Foreign, || Foreign, ()).await {
            does_not_decode(runtime, process, "not understood here").await;
        }
        // The error of a task too.
        let fails = || -> Result<u8, Foreign> { Err(Foreign) };
        for (runtime, process) in open_everywhere(&Task::new(), async move || fails(), fails, ()).await {
            does_not_decode(runtime, process, "not understood here").await;
        }
        for (runtime, process) in open_everywhere(&Task::new(), async || Twisted, || Twisted, ()).await {
            does_not_decode(runtime, process, "").await;
        }
    });
}

fn s16_a_task_that_cancels_itself() {
    undisturbed(|| async {
        // Its destructors run.
        struct Touches(String);
        impl Drop for Touches {
            fn drop(&mut self) {
                touch(format!("{}-{}", self.0, std::process::id()));
            }
        }
        let path = scratch("dropped");
        let polled = async |path: String| -> Result<u8, String> {
            let _dropped = Touches(path);
            match worker::cancel().await {}
        };
        let plain = |path: String| -> Result<u8, String> {
            let _dropped = Touches(path);
            worker::cancel_blocking()
        };
        for (runtime, process) in open_everywhere(&Task::new(), polled, plain, path.clone()).await {
            let error = process.wait().await.unwrap_err();
            assert!(matches!(error, Error::Cancelled { .. }) && error.is_cancelled(), "{runtime}: {error:?}");
            assert!(!error.is_panic() && !error.is_timeout() && error.signal().is_none(), "{runtime}");
            assert_eq!(process.exited().await.0, ExitStatus::Exited(0), "{runtime}");
            if cfg!(panic = "unwind") || runtime != "blocking" {
                std::fs::remove_file(format!("{path}-{}", process.pid())).expect(runtime);
            }
        }
        let cancels = || -> u8 { worker::cancel_blocking() };
        for (runtime, result) in run_everywhere(&Task::new(), async move || cancels(), cancels, ()).await {
            assert!(result.unwrap_err().is_cancelled(), "{runtime}");
        }
        // Its own error, a value, is another outcome.
        let fails = || -> Result<u8, String> { Err("cancelled".to_owned()) };
        for (runtime, result) in run_everywhere(&Task::new(), async move || fails(), fails, ()).await {
            assert_eq!(result.unwrap(), Err("cancelled".to_owned()), "{runtime}");
        }
    });
}
