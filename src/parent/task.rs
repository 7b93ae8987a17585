//! A task's options, and the two ways to start it.

use std::{
    ffi::{OsStr, OsString},
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::Path,
    sync::Arc,
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};

use super::{
    contain::Contain,
    dispatch::Prepared,
    init::default_zygote,
    line::Job,
    parcel::Parcel,
    run::{Open, Run},
    stdio::{self, Pipes, Stdio},
    zygote::Zygote,
};
use crate::{
    error::{Error, TaskId},
    model::Limits,
    task::{AsyncTask, BlockingTask, Entry, Runtime, RuntimeEntry},
    wire::{
        beside,
        control::Prepare,
        job::{self, HEADER_SIZE, Header, Host, Options},
        payload,
        rope::Rope,
    },
};

/// A task with options: what [`std::thread::Builder`] is to threads and [`std::process::Command`] to programs.
///
/// It can be run and opened any number of times.
///
/// ```
/// use std::time::Duration;
/// use tokio_run_in_process::{Task, block_on};
///
/// async fn greeting() -> Option<String> {
///     std::env::var("GREETING").ok()
/// }
///
/// block_on(async {
///     let task = Task::new().name("greeter").env("GREETING", "hello").timeout(Duration::from_secs(5));
///     assert_eq!(task.run(greeting, ()).await.unwrap().as_deref(), Some("hello"));
///     assert!(std::env::var_os("GREETING").is_none());
/// })
/// .unwrap();
/// ```
#[derive(Clone, Debug)]
#[must_use = "a task starts with `run` or `open`"]
pub struct Task {
    /// `None`: the process-wide one of the moment when it is run.
    zygote: Option<Zygote>,
    options: Options,
    pub(super) stdio: [Option<Stdio>; 3],
    pub(super) output_limit: u64,
    runtime: Option<RuntimeEntry>,
    timeout: Option<Duration>,
    queue_timeout: Option<Duration>,
    startup_timeout: Option<Duration>,
    grace_period: Option<Duration>,
    result_limit: Option<u64>,
    argument_limit: Option<u64>,
}

impl Default for Task {
    fn default() -> Self {
        Self::new()
    }
}

impl Task {
    /// A task with the default options, for the process-wide zygote: the one of [`init`](crate::init), or, when it is run,
    /// of [`set_default_zygote`](crate::set_default_zygote). Without one, `run` and `open` give [`Error::NotInitialized`].
    pub fn new() -> Self {
        Self::with(None)
    }

    pub(super) fn with(zygote: Option<Zygote>) -> Self {
        Self {
            zygote,
            options: Options::default(),
            stdio: [None, None, None],
            output_limit: stdio::OUTPUT_LIMIT,
            runtime: None,
            timeout: None,
            queue_timeout: None,
            startup_timeout: None,
            grace_period: None,
            result_limit: None,
            argument_limit: None,
        }
    }

    /// Names it, in errors, in `worker::name()` and (15 bytes of it) in `ps`. Default: the path of the function, in
    /// errors only.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.options.name = Some(name.into());
        self
    }

    /// How long it may run, from the start of its execution. Then it is ended as if dropped, and its outcome is
    /// [`Error::TimedOut`], at once. Default: no limit.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tokio_run_in_process::*; block_on(async {
    /// let task = Task::new().timeout(Duration::from_millis(50));
    /// assert!(task.run(std::future::pending::<()>, ()).await.unwrap_err().is_timeout());
    /// # }).unwrap();
    /// ```
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = Some(limit);
        self
    }

    /// How long it may wait for its turn when as many processes as allowed hold a task. Default: the zygote's
    /// ([`ZygoteBuilder::queue_timeout`](crate::ZygoteBuilder::queue_timeout)).
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tokio_run_in_process::Zygote;
    /// let zygote = Zygote::builder().max_processes(1).start().unwrap();
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// let _busy = zygote.open_in_process(std::future::pending::<()>, ()).await.unwrap();
    /// let hasty = zygote.task().queue_timeout(Duration::from_millis(50));
    /// assert!(hasty.run(async || 1, ()).await.unwrap_err().is_retryable());
    /// # })
    /// ```
    pub fn queue_timeout(mut self, limit: Duration) -> Self {
        self.queue_timeout = Some(limit);
        self
    }

    /// How long its worker may take to come up and start it. Default: the zygote's.
    pub fn startup_timeout(mut self, limit: Duration) -> Self {
        self.startup_timeout = Some(limit);
        self
    }

    /// How long it has between SIGTERM and SIGKILL when it is ended; zero is SIGKILL at once. Default: the zygote's.
    pub fn grace_period(mut self, period: Duration) -> Self {
        self.grace_period = Some(period);
        self
    }

    /// The largest encoded result that is accepted, in bytes; more is [`Error::TooLarge`]. Default: the zygote's.
    ///
    /// ```
    /// # use tokio_run_in_process::*; block_on(async {
    /// let error = Task::new().result_limit(100).run(async || "x".repeat(1000), ()).await.unwrap_err();
    /// assert!(matches!(error, Error::TooLarge { limit: 100, .. }));
    /// # }).unwrap();
    /// ```
    pub fn result_limit(mut self, bytes: u64) -> Self {
        self.result_limit = Some(bytes);
        self
    }

    /// The largest encoded arguments, in bytes; more is [`Error::TooLarge`], before anything is started. What travels by
    /// descriptor (`Shared`, `Fd`) does not count. Default: the zygote's.
    ///
    /// ```
    /// # use tokio_run_in_process::*; block_on(async {
    /// let error = Task::new().argument_limit(100).run(async |text: String| text.len(), "x".repeat(1000)).await.unwrap_err();
    /// assert!(matches!(error, Error::TooLarge { size: 1003, limit: 100, .. }));
    /// # }).unwrap();
    /// ```
    pub fn argument_limit(mut self, bytes: u64) -> Self {
        self.argument_limit = Some(bytes);
        self
    }

    /// Sets a variable of its environment, which else is the program's as it was when the zygote was started.
    ///
    /// # Errors
    ///
    /// A name that is empty or has `=` in it, and a zero byte in a name or a value, make the task fail with
    /// [`Error::InvalidOption`].
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.options.env.insert(key.as_ref().to_owned(), Some(value.as_ref().to_owned()));
        self
    }

    /// Sets several variables: see [`env`](Self::env).
    pub fn envs<K: AsRef<OsStr>, V: AsRef<OsStr>>(self, variables: impl IntoIterator<Item = (K, V)>) -> Self {
        variables.into_iter().fold(self, |task, (key, value)| task.env(key, value))
    }

    /// Removes a variable. A bad name is an error as in [`env`](Self::env).
    pub fn env_remove(mut self, key: impl AsRef<OsStr>) -> Self {
        self.options.env.insert(key.as_ref().to_owned(), None);
        self
    }

    /// Removes every variable, and what was set here before.
    pub fn env_clear(mut self) -> Self {
        self.options.env.clear();
        self.options.env_clear = true;
        self
    }

    /// Its working directory, which else is the program's as it was when the zygote was started; a relative path is relative
    /// to that.
    ///
    /// # Errors
    ///
    /// A directory that is not there or cannot be entered makes the task fail with [`Error::Spawn`], a zero byte in its path
    /// with [`Error::InvalidOption`].
    pub fn current_dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.options.current_dir = Some(OsString::from(dir.as_ref()));
        self
    }

    /// A directory of control groups (cgroup version 2, cgroups(7)) that was delegated to this program: in it the task's
    /// process has a group of its own, and when it has ended, in whatever way, all that it started is killed and the group
    /// is removed. Without this that is so for its process group only, which a process can leave (setsid(2)).
    ///
    /// It holds, too, when your program is killed. Should both zygotes be killed at once, nobody empties the groups of what
    /// runs then. The absolute path of a directory that the worker may write to; Linux 5.14. A worker takes some 0.1 ms
    /// more. Default: none.
    ///
    /// ```no_run
    /// # use tokio_run_in_process::{Task, block_on};
    /// async fn shell(command: String) -> i32 {
    ///     let status = tokio::process::Command::new("sh").args(["-c", &command]).status().await;
    ///     status.ok().and_then(|status| status.code()).unwrap_or(-1)
    /// }
    ///
    /// # block_on(async {
    /// // A service of systemd with `Delegate=yes`, say.
    /// let task = Task::new().cgroup("/sys/fs/cgroup/system.slice/my.service/tasks");
    /// task.run(shell, "setsid sleep 1000 &".to_owned()).await?; // the sleep ends with it
    /// # Ok::<(), tokio_run_in_process::Error>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// A path that is not absolute makes the task fail with [`Error::InvalidOption`]; a directory that is not there or is
    /// none of control groups, and a group that cannot be made or joined, with [`Error::Spawn`].
    pub fn cgroup(mut self, dir: impl AsRef<Path>) -> Self {
        self.options.cgroup = Some(OsString::from(dir.as_ref()));
        self
    }

    /// Its standard input. Default [`Stdio::null`].
    pub fn stdin(mut self, stdin: impl Into<Stdio>) -> Self {
        self.stdio[0] = Some(stdin.into());
        self
    }

    /// Its standard output. Default [`Stdio::inherit`].
    pub fn stdout(mut self, stdout: impl Into<Stdio>) -> Self {
        self.stdio[1] = Some(stdout.into());
        self
    }

    /// Its standard error. Default [`Stdio::inherit`].
    pub fn stderr(mut self, stderr: impl Into<Stdio>) -> Self {
        self.stdio[2] = Some(stderr.into());
        self
    }

    /// Runs an async function on another runtime than the worker's tokio: `Smol` (feature `smol`), or
    /// one of your own.
    pub fn runtime<R: Runtime>(mut self) -> Self {
        self.runtime = Some(RuntimeEntry::of::<R>());
        self
    }

    /// Runs an async function in a fresh process: see [`run_in_process`](crate::run_in_process).
    pub fn run<F, A, M>(&self, function: F, arguments: A) -> Run<F::Output>
    where
        F: AsyncTask<A, M>,
        A: Serialize + DeserializeOwned + 'static,
        F::Output: Serialize + DeserializeOwned + Send + 'static,
    {
        Run::new(self.prepare::<F, A>(Entry::of_async(function), self.async_host(), &arguments))
    }

    /// Opens an async function in a fresh process: see [`open_in_process`](crate::open_in_process).
    pub fn open<F, A, M>(&self, function: F, arguments: A) -> Open<F::Output>
    where
        F: AsyncTask<A, M>,
        A: Serialize + DeserializeOwned + 'static,
        F::Output: Serialize + DeserializeOwned + Send + 'static,
    {
        Open::new(self.prepare::<F, A>(Entry::of_async(function), self.async_host(), &arguments))
    }

    /// Runs a plain function in a fresh process: see [`run_blocking_in_process`](crate::run_blocking_in_process).
    pub fn run_blocking<F, A, M>(&self, function: F, arguments: A) -> Run<F::Output>
    where
        F: BlockingTask<A, M>,
        A: Serialize + DeserializeOwned + 'static,
        F::Output: Serialize + DeserializeOwned + Send + 'static,
    {
        Run::new(self.prepare::<F, A>(Entry::of_blocking(function), Host::Blocking, &arguments))
    }

    /// Opens a plain function in a fresh process: see [`open_blocking_in_process`](crate::open_blocking_in_process).
    pub fn open_blocking<F, A, M>(&self, function: F, arguments: A) -> Open<F::Output>
    where
        F: BlockingTask<A, M>,
        A: Serialize + DeserializeOwned + 'static,
        F::Output: Serialize + DeserializeOwned + Send + 'static,
    {
        Open::new(self.prepare::<F, A>(Entry::of_blocking(function), Host::Blocking, &arguments))
    }

    pub(super) fn async_host(&self) -> Host {
        self.runtime.map_or(Host::Tokio, |runtime| Host::Custom(runtime.address()))
    }

    /// This as what a pool's workers are made with, in its zygote and by its name. An error for what is not theirs to have.
    pub(super) fn for_pool(self, zygote: &Zygote, name: &str) -> Result<Self, Error> {
        let task = Self { zygote: Some(zygote.clone()), ..self }.name(name);
        let misplaced = [
            (
                task.timeout.is_some(),
                "a pool's workers have no `timeout`: `PoolBuilder::task_timeout` is for its tasks",
            ),
            (
                task.queue_timeout.is_some(),
                "a pool's workers have no `queue_timeout`: its builder has one for its tasks",
            ),
            (task.runtime.is_some(), "a pool's workers have tokio's runtime"),
            (task.stdio.iter().flatten().any(Stdio::is_piped), "nobody would read a pipe of a pool's worker"),
        ];
        let misplaced = misplaced.into_iter().find(|&(is_set, _)| is_set).map(|(_, reason)| reason.to_owned());
        match misplaced.map_or_else(|| task.check_options(), Err) {
            Ok(()) => Ok(task),
            Err(reason) => Err(Error::InvalidOption { task: TaskId { name: name.into(), pid: None }, reason }),
        }
    }

    /// Most bytes of its arguments, and of its result.
    pub(super) fn limits(&self, zygote: &Zygote) -> (u64, u64) {
        let config = &zygote.0.config;
        (self.argument_limit.unwrap_or(config.argument_limit), self.result_limit.unwrap_or(config.result_limit))
    }

    /// Opens a worker of a pool, whose tasks come on `line`.
    pub(super) fn open_pool(&self, initializer: Entry, line: OwnedFd) -> Open<()> {
        Open::new(self.prepare_with::<(), ()>(initializer, Host::Pool, &(), Some(Arc::new(line))))
    }

    pub(super) fn prepare<F, A: Serialize>(
        &self,
        entry: Entry,
        host: Host,
        arguments: &A,
    ) -> Result<(Prepared, Pipes), Error> {
        self.prepare_with::<F, A>(entry, host, arguments, None)
    }

    /// Checks and encodes everything: what can fail without a process fails here, and the future needs nothing of the
    /// caller's.
    fn prepare_with<F, A: Serialize>(
        &self,
        entry: Entry,
        host: Host,
        arguments: &A,
        line: Option<Arc<OwnedFd>>,
    ) -> Result<(Prepared, Pipes), Error> {
        let zygote = self.zygote.clone().map_or_else(default_zygote, Ok)?;
        let inner = &zygote.0;
        inner.check_owner()?;
        let name: Arc<str> = self.options.name.as_deref().unwrap_or(std::any::type_name::<F>()).into();
        let task = || TaskId { name: name.clone(), pid: None };
        self.check_options().map_err(|reason| Error::InvalidOption { task: task(), reason })?;
        if !inner.modules.contain(entry.address()) {
            return Err(Error::UnknownCode { task: task() });
        }
        let cgroup = self.options.cgroup.as_deref().map(Contain::new).transpose();
        let cgroup = cgroup.map_err(|(step, source)| Error::Spawn { task: task(), step, source: Arc::new(source) })?;
        let kept = usize::try_from(self.output_limit).unwrap_or(usize::MAX);
        let (replaced, mut fds, pipes) = stdio::open(&self.stdio, &inner.null, kept).map_err(|e| Error::Spawn {
            task: task(),
            step: "open stdio".to_owned(),
            source: Arc::new(e),
        })?;
        fds.extend(line);
        let mut rope = Rope::from(vec![0; HEADER_SIZE]);
        let custom = replaced != [false; 3] || self.options != Options::default();
        if custom {
            job::encode_options(&Options { stdio: replaced, ..self.options.clone() }, &mut rope);
        }
        let options = rope.len() - HEADER_SIZE;
        let (argument_limit, result_limit) = self.limits(&zygote);
        let (encoded, passed) = beside::encoding(true, || payload::encode_into(arguments, &mut rope, argument_limit));
        encoded.map_err(|e| Error::encode(task(), e))?;
        let gives_away = passed.iter().any(|passed| passed.owned);
        fds.extend(passed.into_iter().map(|passed| passed.fd));
        let header = Header {
            fds: u16::try_from(fds.len()).expect("there are limits"),
            quiet: false,
            entry: entry.address(),
            options: options as u64,
            arguments: (rope.len() - HEADER_SIZE - options) as u64,
            host,
            result_limit,
        };
        rope.head_mut()[..HEADER_SIZE].copy_from_slice(&header.encode());
        let limits = Limits {
            startup: self.startup_timeout.unwrap_or(inner.config.startup_timeout),
            running: self.timeout,
            grace: self.grace_period.unwrap_or(inner.config.grace_period),
        };
        let serves_pool = host == Host::Pool;
        let prepared = Prepared {
            name,
            job: Arc::new(Job {
                parcel: Parcel::new(rope, fds),
                gives_away,
                quiet: false,
                teaches: false,
                serves_pool,
                result_limit,
                limits,
            }),
            prepare: if matches!(host, Host::Tokio | Host::Pool) { Prepare::Tokio } else { Prepare::Nothing },
            queue_timeout: self.queue_timeout.or(inner.config.queue_timeout),
            // An error of a task that is cut names its pid.
            announce: self.timeout.is_some(),
            cgroup,
            zygote,
        };
        Ok((prepared, pipes))
    }

    /// What the worker could not tell us about nicely.
    fn check_options(&self) -> Result<(), String> {
        for (key, value) in &self.options.env {
            let bad_key = key.is_empty() || key.as_bytes().iter().any(|&b| b == 0 || b == b'=');
            if bad_key {
                return Err(format!("{key:?} is not a name of a variable"));
            }
            if value.as_ref().is_some_and(|value| value.as_bytes().contains(&0)) {
                return Err(format!("the value of the variable {key:?} contains a zero byte"));
            }
        }
        if let Some(dir) = self.options.current_dir.as_ref().filter(|dir| dir.as_bytes().contains(&0)) {
            return Err(format!("the directory {dir:?} contains a zero byte"));
        }
        if let Some(dir) = self.options.cgroup.as_ref().filter(|dir| !Path::new(dir).is_absolute()) {
            return Err(format!("{dir:?} is not the absolute path of a directory of control groups"));
        }
        if self.stdio[0].as_ref().is_some_and(Stdio::is_traced) {
            return Err("stdin has no lines to trace: only stdout and stderr can be `Stdio::traced`".to_owned());
        }
        Ok(())
    }
}
