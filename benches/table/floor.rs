//! The floor: what the machine itself takes, measured before and after everything else, since machines drift.

use std::{
    io,
    os::unix::net::UnixStream as StdUnixStream,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

use crate::{
    Plan,
    helper::{Helpers, Mover, PING, Yardstick},
    stats::p50,
    ways::{NONE, PAUSE, Ways, rest},
};

/// The helpers, and the runtime that talks to one of them.
pub(crate) struct Floor<'a> {
    pub(crate) yardstick: Yardstick,
    second: Yardstick,
    pub(crate) same_cpu: Yardstick,
    pub(crate) mover: Mover,
    echo: Option<UnixStream>,
    ways: &'a Ways,
    batch: usize,
    time: Duration,
}

/// Medians in microseconds.
#[derive(Clone, Copy)]
pub(crate) struct Latency {
    pub(crate) fork: f64,
    pub(crate) ping: f64,
}

/// Forks per second.
#[derive(Clone, Copy)]
pub(crate) struct Rate {
    /// One process, sixteen in flight.
    pub(crate) many: f64,
    /// One process, one in flight.
    pub(crate) one: f64,
    /// Two processes, one in flight each.
    pub(crate) two: f64,
}

impl Latency {
    fn between(self, other: Self) -> Self {
        Self { fork: f64::midpoint(self.fork, other.fork), ping: f64::midpoint(self.ping, other.ping) }
    }
}

impl Rate {
    fn between(self, other: Self) -> Self {
        Self {
            many: f64::midpoint(self.many, other.many),
            one: f64::midpoint(self.one, other.one),
            two: f64::midpoint(self.two, other.two),
        }
    }
}

impl<'a> Floor<'a> {
    pub(crate) fn new(helpers: Helpers, ways: &'a Ways, plan: &Plan) -> io::Result<Self> {
        let Helpers { yardstick, second, same_cpu, mover, echo } = helpers;
        echo.set_nonblocking(true)?;
        let echo = Some(ways.on_worker(register(echo))?);
        Ok(Self { yardstick, second, same_cpu, mover, echo, ways, batch: plan.floor_batch, time: plan.floor_time })
    }

    /// A batch of the yardstick and of the ping-pong.
    pub(crate) fn latency(&mut self) -> Latency {
        let fork = p50(&self.yardstick.latencies(self.batch, NONE));
        Latency { fork, ping: p50(&self.pings(2 * self.batch, NONE)) }
    }

    /// Measures something `n` times with pauses, each time next to the floor, which has its pauses too: both find caches as
    /// cold and a machine as idle. They take turns in going first, since whoever comes second finds more of both warm.
    pub(crate) fn in_turn(
        &mut self,
        n: usize,
        mut measure: impl FnMut(&mut Self) -> Result<Vec<Duration>, String>,
    ) -> (Result<Vec<Duration>, String>, Latency) {
        let (mut times, mut forks, mut pings) = (Vec::new(), Vec::new(), Vec::new());
        for turn in 0..n {
            if turn % 2 == 1 {
                forks.extend(self.yardstick.latencies(1, PAUSE));
            }
            match measure(self) {
                Ok(found) => times.extend(found),
                Err(error) => return (Err(error), Latency { fork: f64::NAN, ping: f64::NAN }),
            }
            if turn % 2 == 0 {
                forks.extend(self.yardstick.latencies(1, PAUSE));
            }
            pings.extend(self.pings(1, PAUSE));
        }
        (Ok(times), Latency { fork: p50(&forks), ping: p50(&pings) })
    }

    /// Measures something, between two looks at the floor.
    pub(crate) fn beside<T>(&mut self, measure: impl FnOnce(&mut Self) -> T) -> (T, Latency) {
        let before = self.latency();
        let measured = measure(self);
        (measured, before.between(self.latency()))
    }

    /// The floor of throughput.
    pub(crate) fn rate(&mut self) -> Rate {
        let many = self.yardstick.rate(16, self.time);
        let one = self.yardstick.rate(1, self.time);
        self.yardstick.begin_rate(1, self.time);
        self.second.begin_rate(1, self.time);
        Rate { many, one, two: self.yardstick.end_rate() + self.second.end_rate() }
    }

    /// Measures a rate, between two looks at the floor.
    pub(crate) fn beside_rate<T>(&mut self, measure: impl FnOnce(&mut Self) -> T) -> (T, Rate) {
        let before = self.rate();
        let measured = measure(self);
        (measured, before.between(self.rate()))
    }

    /// Round trips through a socket, from tokio to a process that blocks.
    pub(crate) fn pings(&mut self, n: usize, pause: Duration) -> Vec<Duration> {
        let stream = self.echo.take().expect("nobody else has it");
        let (stream, times) = self.ways.on_worker(ping_pong(stream, n, pause));
        self.echo = Some(stream);
        times
    }
}

async fn register(stream: StdUnixStream) -> io::Result<UnixStream> {
    UnixStream::from_std(stream)
}

async fn ping_pong(mut stream: UnixStream, n: usize, pause: Duration) -> (UnixStream, Vec<Duration>) {
    let mut times = Vec::with_capacity(n);
    let mut ping = [7; PING];
    for _ in 0..n {
        rest(pause).await;
        let start = Instant::now();
        stream.write_all(&ping).await.unwrap();
        stream.read_exact(&mut ping).await.unwrap();
        times.push(start.elapsed());
    }
    (stream, times)
}
