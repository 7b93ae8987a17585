//! Requests and their replies, over two channels: so a task can call back into its parent.

use std::{
    fmt,
    future::poll_fn,
    io,
    task::{Context, Poll, ready},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    ChannelError, Receiver, Sender, channel, end,
    receiver::{Message, decode},
};
use crate::wire::payload;

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
        let mut question = Some(question);
        poll_fn(|context| self.poll_call(&mut question, context)).await
    }

    /// Asks, and takes answers meanwhile: a responder that is held up by one to a call that was dropped reads no question.
    fn poll_call(&mut self, question: &mut Option<Q>, context: &mut Context<'_>) -> Poll<Result<A, ChannelError>> {
        loop {
            if let Poll::Ready(Err(e)) = self.poll_ask(question, context) {
                return Poll::Ready(Err(e));
            }
            let last = self.last;
            match ready!(self.answers.poll_message(context, |message| answer_to(last, message)))? {
                None => return Poll::Ready(Err(ChannelError::Closed)),
                Some(Some(answer)) => return Poll::Ready(Ok(answer)),
                Some(None) => {}
            }
        }
    }

    fn poll_ask(&mut self, question: &mut Option<Q>, context: &mut Context<'_>) -> Poll<Result<(), ChannelError>> {
        // What a call before left half-way is first.
        ready!(self.questions.poll_flush(context))?;
        match question.take() {
            None => Poll::Ready(Ok(())),
            Some(question) => {
                self.questions.accept(&(self.last, question))?;
                self.questions.poll_flush(context)
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
        let last = self.last;
        let mut question = Some(question);
        // As `poll_call`.
        let mut asked = false;
        loop {
            while !asked && self.questions.flush_now()? {
                match question.take() {
                    None => asked = true,
                    Some(question) => self.questions.accept(&(last, question))?,
                }
            }
            let heard = match asked {
                true => Poll::Ready(self.answers.block_message(|message| answer_to(last, message))),
                false => self.answers.message_now(|message| answer_to(last, message)),
            };
            match heard {
                Poll::Pending => end::wait(self.questions.end(), self.answers.end())?,
                Poll::Ready(Err(e)) => return Err(e),
                Poll::Ready(Ok(None)) => return Err(ChannelError::Closed),
                Poll::Ready(Ok(Some(Some(answer)))) => return Ok(answer),
                Poll::Ready(Ok(Some(None))) => {}
            }
        }
    }
}

/// The answer to the question of that number; `None` if it is one to another, whose errors are nobody's either.
fn answer_to<A: DeserializeOwned>(number: u64, message: Message<'_>) -> Result<Option<A>, ChannelError> {
    if payload::first_number(message.bytes()).is_some_and(|other| other != number) {
        return Ok(None);
    }
    let (_, answer): (u64, A) = decode(message)?;
    Ok(Some(answer))
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
