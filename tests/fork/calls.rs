//! Calls into another process that were given up: nothing of them is in the way of the next one.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use tokio::time::timeout;
use tokio_run_in_process::{Bytes, Caller, ChannelError, Responder, call_channel, open_in_process};

use crate::oracle::undisturbed;

crate::cases![
    calls_that_were_given_up_hold_nobody_up,
    plain_calls_are_not_held_up_either,
    what_is_wrong_with_the_answer_to_a_call_that_was_given_up_is_nobodys,
];

/// More than a socket holds, so that who sends it waits for who receives it.
fn large(n: u8) -> Bytes {
    vec![n; 1 << 20].into()
}

/// The first answer comes too late.
async fn echo(responder: Responder<Bytes, Bytes>) {
    responder
        .serve(async |question: Bytes| {
            if question[0] == 0 {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            question
        })
        .await
        .unwrap();
}

async fn give_up(caller: &mut Caller<Bytes, Bytes>) {
    assert!(timeout(Duration::from_millis(50), caller.call(large(0))).await.is_err());
    // Its answer is under way now, and nobody takes it.
    tokio::time::sleep(Duration::from_millis(100)).await;
}

fn calls_that_were_given_up_hold_nobody_up() {
    async fn ask(mut caller: Caller<Bytes, Bytes>) -> bool {
        let mut right = true;
        for n in 1..5 {
            give_up(&mut caller).await;
            right &= caller.call(large(n)).await.unwrap() == large(n);
        }
        right
    }
    undisturbed(|| async {
        let (caller, responder) = call_channel().unwrap();
        let process = open_in_process(ask, caller).await.unwrap();
        echo(responder).await;
        assert!(process.wait().await.unwrap());

        let (caller, responder) = call_channel().unwrap();
        let process = open_in_process(echo, responder).await.unwrap();
        assert!(ask(caller).await);
        process.wait().await.unwrap();
    });
}

fn plain_calls_are_not_held_up_either() {
    undisturbed(|| async {
        let (mut caller, responder) = call_channel().unwrap();
        let process = open_in_process(echo, responder).await.unwrap();
        give_up(&mut caller).await;
        let asks =
            tokio::task::spawn_blocking(move || (1..5).all(|n| caller.blocking_call(large(n)).unwrap() == large(n)));
        assert!(asks.await.unwrap());
        process.wait().await.unwrap();
    });
}

/// Only odd ones decode.
#[derive(Debug, PartialEq, Serialize)]
struct Odd(u64);

impl<'de> Deserialize<'de> for Odd {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u64::deserialize(deserializer)? {
            n if n % 2 == 1 => Ok(Self(n)),
            n => Err(D::Error::custom(format!("{n} is even"))),
        }
    }
}

fn what_is_wrong_with_the_answer_to_a_call_that_was_given_up_is_nobodys() {
    undisturbed(|| async {
        let (mut caller, mut responder) = call_channel::<u64, Odd>().unwrap();
        for blocking in [false, true] {
            assert!(timeout(Duration::from_millis(10), caller.call(2)).await.is_err());
            let (question, reply) = responder.recv().await.unwrap().unwrap();
            responder.reply(reply, Odd(question)).await.unwrap();
            let answers = tokio::spawn(async move {
                for _ in 0..2 {
                    let (question, reply) = responder.recv().await.unwrap().unwrap();
                    responder.reply(reply, Odd(question)).await.unwrap();
                }
                responder
            });
            let asks = tokio::task::spawn_blocking(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                let mut call = |n| match blocking {
                    true => caller.blocking_call(n),
                    false => runtime.block_on(caller.call(n)),
                };
                assert_eq!(call(3).unwrap(), Odd(3));
                // Of its own the caller is told.
                assert!(matches!(call(4), Err(ChannelError::Decode(why)) if why.contains("4 is even")));
                caller
            });
            (caller, responder) = (asks.await.unwrap(), answers.await.unwrap());
        }
    });
}
