//! Whole frames whose values are hostile: nested too deep, with lengths that are not so, with bytes that are no value.

use std::{
    collections::HashMap,
    fmt::Debug,
    num::NonZeroU8,
    time::{Duration, Instant},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned, ser::SerializeTuple};
use tokio_run_in_process::{Bytes, ChannelError, Coded, Error, Sender, Task, channel};

use crate::{oracle::undisturbed, tools::status};

crate::cases![
    d48_values_that_are_nested_too_deep,
    d48_the_deepest_values_travel,
    d48_a_deep_value_in_arguments,
    d49_lengths_inside_a_value,
    d51_bytes_that_are_no_value,
    d51_messages_that_are_no_values,
];

/// Is encoded as bytes that somebody chose, and decoded as what they claim to be.
#[derive(Debug)]
enum Forged<T> {
    Bytes(Vec<u8>),
    Read(T),
}

impl<T> Serialize for Forged<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self::Bytes(bytes) = self else { unreachable!("only bytes are sent") };
        let mut all = serializer.serialize_tuple(bytes.len())?;
        for byte in bytes {
            all.serialize_element(byte)?;
        }
        all.end()
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Forged<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::deserialize(deserializer).map(Self::Read)
    }
}

/// What a worker that sends these bytes as its result does to us.
async fn forged<T: DeserializeOwned + Debug + Send + 'static>(bytes: Vec<u8>) -> String {
    let forge = async |bytes: Vec<u8>| Forged::<T>::Bytes(bytes);
    let error = Task::new().run(forge, bytes.clone()).await.unwrap_err();
    let Error::Decode { what: Coded::Result, reason, .. } = &error else { panic!("{error:?}") };
    let opened = Task::new().open_blocking(Forged::<T>::Bytes, bytes).await.unwrap().wait().await.unwrap_err();
    assert!(
        matches!(&opened, Error::Decode { what: Coded::Result, reason: other, .. } if other == reason),
        "{opened:?}"
    );
    reason.clone()
}

#[derive(Debug, Serialize, Deserialize)]
struct List {
    value: u8,
    next: Option<Box<List>>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Peano {
    Zero,
    Succ(Box<Peano>),
}

#[derive(Debug, Serialize, Deserialize)]
enum Json {
    Null,
    Array(Vec<Json>),
    Object(HashMap<String, Json>),
}

fn list(nodes: usize) -> List {
    (1..nodes).fold(List { value: 0, next: None }, |next, n| List { value: n as u8, next: Some(Box::new(next)) })
}

/// Twenty thousand to a million levels: enough for whoever believes them to overflow any stack, when the value is made
/// or when it is dropped.
fn d48_values_that_are_nested_too_deep() {
    undisturbed(|| async {
        for depth in [600, 20_000, 1_000_000] {
            let whole = [[7, 1].repeat(depth), vec![7, 0]].concat();
            assert!(forged::<List>(whole).await.contains("nested deeper"), "{depth}");
            assert!(forged::<Peano>([vec![1; depth], vec![0]].concat()).await.contains("nested deeper"), "{depth}");
            assert!(forged::<Json>([[1, 1].repeat(depth), vec![0]].concat()).await.contains("nested deeper"));
            assert!(forged::<Json>([[2, 1, 0].repeat(depth), vec![0]].concat()).await.contains("nested deeper"));
            // And never ends.
            assert!(forged::<Peano>(vec![1; depth]).await.contains("nested deeper"), "{depth}");
        }
    });
}

/// Here they are made and dropped on the usual stack of a runtime's thread.
fn d48_the_deepest_values_travel() {
    undisturbed(|| async {
        let there_and_back = async |list: List| list;
        let mut list = tokio::spawn(Task::new().run(there_and_back, list(255))).await.unwrap().unwrap();
        let mut nodes = 1;
        while let Some(next) = list.next.take() {
            assert_eq!(list.value, 255 - nodes as u8);
            (list, nodes) = (*next, nodes + 1);
        }
        assert_eq!(nodes, 255);
        let peano = |n: u32| (0..n).fold(Peano::Zero, |peano, _| Peano::Succ(Box::new(peano)));
        let value = Task::new().run_blocking(move |n: u32| peano(n), 511).await.unwrap();
        assert_eq!(value, peano(511));
    });
}

/// A program's own value may be too deep too, in either direction; it is told which way out there is.
fn d48_a_deep_value_in_arguments() {
    undisturbed(|| async {
        let error = Task::new().run(async |_: List| (), list(400)).await.unwrap_err();
        let Error::Decode { what: Coded::Arguments, reason, .. } = &error else { panic!("{error:?}") };
        assert!(reason.contains("send it flat"), "{reason}");
        let error = Task::new().run(async |nodes: usize| list(nodes), 400).await.unwrap_err();
        assert!(matches!(error, Error::Decode { what: Coded::Result, .. }), "{error:?}");
    });
}

/// The number `n` as the codec writes it.
fn length(n: u64) -> Vec<u8> {
    [vec![253], n.to_le_bytes().to_vec()].concat()
}

fn d49_lengths_inside_a_value() {
    undisturbed(|| async {
        let resident = || -> u64 {
            let text = status(std::process::id(), "VmHWM").unwrap();
            text.split_whitespace().next().unwrap().parse().unwrap()
        };
        // What the library needs once.
        forged::<Vec<u64>>(vec![1]).await;
        let (before, began) = (resident(), Instant::now());
        for huge in [1 << 40, 1 << 62, u64::MAX] {
            let bytes = || [length(huge), vec![b'x'; 1000]].concat();
            assert!(forged::<Vec<()>>(bytes()).await.contains("send their number"));
            assert!(forged::<Vec<[u64; 0]>>(bytes()).await.contains("send their number"));
            assert!(forged::<HashMap<(), ()>>(bytes()).await.contains("send their number"));
            assert!(forged::<Vec<u64>>(bytes()).await.contains("more elements than its bytes"));
            assert!(forged::<HashMap<u64, String>>(bytes()).await.contains("more elements than its bytes"));
            assert!(forged::<String>(bytes()).await.contains("bytes end before"));
            assert!(forged::<std::path::PathBuf>(bytes()).await.contains("bytes end before"));
            assert!(forged::<serde_bytes::ByteBuf>(bytes()).await.contains("bytes end before"));
            assert!(forged::<Bytes>(bytes()).await.contains("bytes end before"));
        }
        // Every element claims the whole rest.
        let mut bomb = length(60_000);
        bomb.extend(length(59_000).repeat(1000));
        assert!(forged::<Vec<Vec<()>>>(bomb.clone()).await.contains("send their number"));
        assert!(forged::<Vec<Vec<Vec<u64>>>>(bomb).await.contains("more elements"));
        assert!(resident() - before < 32 << 10, "from {before} to {} kB", resident());
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
        // Many keys of a map are hashed with keys of this process's own: nobody else can make them collide.
        let keys: HashMap<u64, ()> = (0..100_000).map(|n| (n << 32, ())).collect();
        let back = Task::new().run(async |keys: HashMap<u64, ()>| keys, keys.clone()).await.unwrap();
        assert!(back == keys);
    });
}

fn d51_bytes_that_are_no_value() {
    undisturbed(|| async {
        assert!(forged::<String>(vec![2, 0xff, 0xfe]).await.contains("utf-8"));
        forged::<char>(vec![0xf4, 0x90, 0x80, 0x80]).await;
        forged::<char>(vec![0xed, 0xa0, 0x80]).await;
        assert!(forged::<NonZeroU8>(vec![0]).await.contains("nonzero"));
        forged::<bool>(vec![2]).await;
        forged::<Option<u8>>(vec![2, 0]).await;
        assert!(forged::<Peano>(vec![9]).await.contains("variant index"));
        assert!(forged::<(u64, String)>(vec![1]).await.contains("bytes end before"));
        assert!(forged::<u64>(vec![1, 1, b'x']).await.contains("left over"));
        assert!(forged::<u64>(vec![]).await.contains("bytes end before"));
    });
}

/// A message that is none is an error, and the next one comes.
fn d51_messages_that_are_no_values() {
    undisturbed(|| async {
        let forgeries = [vec![1; 20_000], vec![9], vec![1, 1, 1], vec![]];
        for bytes in forgeries {
            let (sender, mut receiver) = channel::<Forged<Peano>>().unwrap();
            let sends = async |mut sender: Sender<Forged<Peano>>, bytes: Vec<u8>| {
                for bytes in [vec![1, 0], bytes, vec![1, 0]] {
                    sender.send(Forged::Bytes(bytes)).await.unwrap();
                }
                7
            };
            let task = tokio::spawn(Task::new().run(sends, (sender, bytes)));
            let one = Peano::Succ(Box::new(Peano::Zero));
            let first = receiver.recv().await.unwrap();
            assert!(matches!(&first, Some(Forged::Read(value)) if *value == one), "{first:?}");
            let error = receiver.recv().await.unwrap_err();
            assert!(matches!(error, ChannelError::Decode(_)), "{error:?}");
            let last = receiver.recv().await.unwrap();
            assert!(matches!(&last, Some(Forged::Read(value)) if *value == one), "{last:?}");
            assert!(receiver.recv().await.unwrap().is_none());
            assert_eq!(task.await.unwrap().unwrap(), 7);
        }
    });
}
