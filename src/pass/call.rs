//! Requests and their replies, over two channels: so a task can call back into its parent.

use std::{fmt, io};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{ChannelError, Receiver, Sender, channel};

/// Two ends by which one process asks and another answers. Either can be an argument of a task; most often the task gets
/// the [`Caller`], to call back into its parent.
///
/// # Errors
///
/// The limit of descriptors: it takes four.
///
/// ```
/// use tokio_run_in_process::{Caller, block_on, call_channel, open_in_process};
///
/// async fn price(mut lookup: Caller<String, Option<u32>>) -> u32 {
///     let apples = lookup.call("apples".into()).await.unwrap().unwrap_or(0);
///     let pears = lookup.call("pears".into()).await.unwrap().unwrap_or(0);
///     3 * apples + 2 * pears
/// }
///
/// block_on(async {
///     let (lookup, answers) = call_channel::<String, Option<u32>>().unwrap();
///     let process = open_in_process(price, lookup).await.unwrap();
///     let prices = std::collections::HashMap::from([("apples", 5), ("pears", 7)]);
///     answers.serve(async |name: String| prices.get(&*name).copied()).await.unwrap();
///     assert_eq!(process.wait().await.unwrap(), 29);
/// })
/// .unwrap();
/// ```
pub fn call_channel<Q, A>() -> io::Result<(Caller<Q, A>, Responder<Q, A>)> {
    let (questions, asked) = channel()?;
    let (replies, answers) = channel()?;
    Ok((Caller { questions, answers, last: 0 }, Responder { asked, replies }))
}

/// Asks: see [`call_channel`]. One question at a time; several callers are several channels.
#[derive(Serialize, Deserialize)]
#[serde(bound = "")]
pub struct Caller<Q, A> {
    questions: Sender<(u64, Q)>,
    answers: Receiver<(u64, A)>,
    last: u64,
}

impl<Q: Serialize, A: DeserializeOwned> Caller<Q, A> {
    /// Asks, and waits for the answer.
    ///
    /// # Errors
    ///
    /// [`ChannelError`]; `Closed` if the responder is gone.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped the question may have been asked; its answer is never taken for that of a later one.
    pub async fn call(&mut self, question: Q) -> Result<A, ChannelError> {
        self.last += 1;
        self.questions.send((self.last, question)).await?;
        loop {
            match self.answers.recv().await? {
                None => return Err(ChannelError::Closed),
                Some((number, answer)) if number == self.last => return Ok(answer),
                Some(_) => {}
            }
        }
    }

    /// [`call`](Self::call) for a plain function: the thread waits.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call).
    pub fn blocking_call(&mut self, question: Q) -> Result<A, ChannelError> {
        self.last += 1;
        self.questions.blocking_send((self.last, question))?;
        loop {
            match self.answers.blocking_recv()? {
                None => return Err(ChannelError::Closed),
                Some((number, answer)) if number == self.last => return Ok(answer),
                Some(_) => {}
            }
        }
    }
}

impl<Q, A> fmt::Debug for Caller<Q, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caller").field("asked", &self.last).finish_non_exhaustive()
    }
}

/// Answers: see [`call_channel`].
#[derive(Serialize, Deserialize)]
#[serde(bound = "")]
pub struct Responder<Q, A> {
    asked: Receiver<(u64, Q)>,
    replies: Sender<(u64, A)>,
}

/// Which question is answered: each once.
#[derive(Debug)]
#[must_use = "who asked waits for the answer"]
pub struct Reply(u64);

impl<Q: DeserializeOwned, A: Serialize> Responder<Q, A> {
    /// Answers every question by `answer`, one after the other, until the caller is gone.
    ///
    /// # Errors
    ///
    /// [`ChannelError`]: a question that does not decode, say. A caller that goes without waiting for its answer is none.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped while it answers, that question is not answered.
    pub async fn serve(mut self, mut answer: impl AsyncFnMut(Q) -> A) -> Result<(), ChannelError> {
        while let Some((question, reply)) = self.recv().await? {
            match self.reply(reply, answer(question).await).await {
                Err(ChannelError::Closed) => break,
                result => result?,
            }
        }
        Ok(())
    }

    /// Waits for the next question. `None`: the caller is gone.
    ///
    /// # Errors
    ///
    /// As [`Receiver::recv`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub async fn recv(&mut self) -> Result<Option<(Q, Reply)>, ChannelError> {
        Ok(self.asked.recv().await?.map(|(number, question)| (question, Reply(number))))
    }

    /// Answers a question.
    ///
    /// # Errors
    ///
    /// As [`Sender::send`].
    ///
    /// # Cancel safety
    ///
    /// As [`Sender::send`].
    pub async fn reply(&mut self, reply: Reply, answer: A) -> Result<(), ChannelError> {
        self.replies.send((reply.0, answer)).await
    }
}

impl<Q, A> fmt::Debug for Responder<Q, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Responder").finish_non_exhaustive()
    }
}
