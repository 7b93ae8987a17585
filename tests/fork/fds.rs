//! Descriptors as arguments: each kind, and wherever it is in a value. Whose they are is in `fds_owned`.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read, Write},
    net as std_net,
    os::{fd::OwnedFd, unix::net as unix},
};

use serde::{Deserialize, Deserializer, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net,
};
use tokio_run_in_process::{
    Bytes, Coded, Descriptor, Error, Fd, Pool, Task, open_in_process, run_blocking_in_process, run_in_process,
};

use crate::{
    bytes::made,
    oracle::{scratch, undisturbed},
    seed::runtimes,
};

crate::cases![
    descriptors_of_std,
    descriptors_of_tokio,
    a_descriptor_of_ones_own,
    descriptors_anywhere_in_a_value,
    a_clone_stays_here,
    a_value_that_does_not_decode,
    no_descriptor_travels_back,
];

/// Who hears it, and what is written to.
pub(crate) fn stream() -> (unix::UnixStream, unix::UnixStream) {
    unix::UnixStream::pair().unwrap()
}

/// What comes until the other end, in all its copies, is closed.
pub(crate) async fn all_of(stream: unix::UnixStream) -> String {
    stream.set_nonblocking(true).unwrap();
    let mut text = String::new();
    net::UnixStream::from_std(stream).unwrap().read_to_string(&mut text).await.unwrap();
    text
}

fn descriptors_of_std() {
    undisturbed(|| async {
        let path = scratch("file");
        let file = File::create(&path).unwrap();
        let (heard, pipe) = nix::unistd::pipe().unwrap();
        let listener = std_net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut tcp = std_net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let udp = std_net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let other = std_net::UdpSocket::bind("127.0.0.1:0").unwrap();
        udp.connect(other.local_addr().unwrap()).unwrap();
        let (connected, mut peer) = stream();
        let (datagram, datagrams) = unix::UnixDatagram::pair().unwrap();
        let socket = scratch("socket");
        let unix_listener = unix::UnixListener::bind(&socket).unwrap();
        let addresses = (listener.local_addr().unwrap(), socket.clone());
        let streams =
            async |file: Fd<File>, pipe: Fd<OwnedFd>, tcp: Fd<std_net::TcpStream>, unix: Fd<unix::UnixStream>| {
                file.into_inner().unwrap().write_all(b"file").unwrap();
                File::from(pipe.into_inner().unwrap()).write_all(b"pipe").unwrap();
                tcp.into_inner().unwrap().write_all(b"tcp").unwrap();
                unix.into_inner().unwrap().write_all(b"unix").unwrap();
            };
        run_in_process(streams, (file.into(), pipe.into(), accepted.into(), connected.into())).await.unwrap();
        let mut texts = [(); 3].map(|()| String::new());
        File::from(heard).read_to_string(&mut texts[0]).unwrap();
        tcp.read_to_string(&mut texts[1]).unwrap();
        peer.read_to_string(&mut texts[2]).unwrap();
        assert_eq!(texts, ["pipe", "tcp", "unix"]);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "file");
        type Others = (
            Fd<std_net::TcpListener>,
            Fd<std_net::UdpSocket>,
            Fd<unix::UnixDatagram>,
            Fd<unix::UnixListener>,
            (std_net::SocketAddr, String),
        );
        let others = |listener: Fd<std_net::TcpListener>,
                      udp: Fd<std_net::UdpSocket>,
                      datagram: Fd<unix::UnixDatagram>,
                      unix: Fd<unix::UnixListener>,
                      to: (std_net::SocketAddr, String)| {
            udp.into_inner().unwrap().send(b"udp").unwrap();
            datagram.into_inner().unwrap().send(b"datagram").unwrap();
            let (listener, unix) = (listener.into_inner().unwrap(), unix.into_inner().unwrap());
            let (_one, _other) = (std_net::TcpStream::connect(to.0).unwrap(), unix::UnixStream::connect(to.1).unwrap());
            listener.accept().is_ok() && unix.accept().is_ok()
        };
        let arguments: Others = (listener.into(), udp.into(), datagram.into(), unix_listener.into(), addresses);
        assert!(run_blocking_in_process(others, arguments).await.unwrap());
        let mut room = [0; 20];
        assert_eq!(other.recv(&mut room).map(|n| room[..n].to_vec()).unwrap(), b"udp");
        assert_eq!(datagrams.recv(&mut room).map(|n| room[..n].to_vec()).unwrap(), b"datagram");
        std::fs::remove_file(path).unwrap();
        std::fs::remove_file(socket).unwrap();
    });
}

fn descriptors_of_tokio() {
    undisturbed(|| async {
        let listener = net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        let (connected, mut peer) = net::UnixStream::pair().unwrap();
        let (sender, mut heard) = net::unix::pipe::pipe().unwrap();
        let (mut says, receiver) = net::unix::pipe::pipe().unwrap();
        let streams = async |tcp: Fd<net::TcpStream>,
                             unix: Fd<net::UnixStream>,
                             sender: Fd<net::unix::pipe::Sender>,
                             receiver: Fd<net::unix::pipe::Receiver>| {
            tcp.into_inner().unwrap().write_all(b"tcp").await.unwrap();
            unix.into_inner().unwrap().write_all(b"unix").await.unwrap();
            sender.into_inner().unwrap().write_all(b"pipe").await.unwrap();
            let mut text = String::new();
            receiver.into_inner().unwrap().read_to_string(&mut text).await.unwrap();
            text
        };
        let arguments = (fd(accepted), fd(connected), fd(sender), fd(receiver));
        let run = tokio::spawn(run_in_process(streams, arguments));
        says.write_all(b"hello").await.unwrap();
        drop(says);
        assert_eq!(run.await.unwrap().unwrap(), "hello");
        let mut texts = [(); 3].map(|()| String::new());
        client.read_to_string(&mut texts[0]).await.unwrap();
        peer.read_to_string(&mut texts[1]).await.unwrap();
        heard.read_to_string(&mut texts[2]).await.unwrap();
        assert_eq!(texts, ["tcp", "unix", "pipe"]);
        let udp = net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let other = net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        udp.connect(other.local_addr().unwrap()).await.unwrap();
        let (datagram, datagrams) = net::UnixDatagram::pair().unwrap();
        let socket = scratch("tokio");
        let unix_listener = net::UnixListener::bind(&socket).unwrap();
        let to = (listener.local_addr().unwrap(), socket.clone());
        let others = async |listener: Fd<net::TcpListener>,
                            udp: Fd<net::UdpSocket>,
                            datagram: Fd<net::UnixDatagram>,
                            unix: Fd<net::UnixListener>,
                            to: (std_net::SocketAddr, String)| {
            udp.into_inner().unwrap().send(b"udp").await.unwrap();
            datagram.into_inner().unwrap().send(b"datagram").await.unwrap();
            let (listener, unix) = (listener.into_inner().unwrap(), unix.into_inner().unwrap());
            let (_one, _other) =
                (net::TcpStream::connect(to.0).await.unwrap(), net::UnixStream::connect(to.1).await.unwrap());
            listener.accept().await.is_ok() && unix.accept().await.is_ok()
        };
        let arguments = (fd(listener), fd(udp), fd(datagram), fd(unix_listener), to);
        assert!(run_in_process(others, arguments).await.unwrap());
        let mut room = [0; 20];
        assert_eq!(other.recv(&mut room).await.map(|n| room[..n].to_vec()).unwrap(), b"udp");
        assert_eq!(datagrams.recv(&mut room).await.map(|n| room[..n].to_vec()).unwrap(), b"datagram");
        std::fs::remove_file(socket).unwrap();
        // Where there is no tokio, it says so.
        let (ours, theirs) = net::UnixStream::pair().unwrap();
        let refused = |stream: Fd<net::UnixStream>| stream.into_inner().map(drop).map_err(|e| e.to_string());
        let error = run_blocking_in_process(refused, fd(theirs)).await.unwrap().unwrap_err();
        assert!(error.contains("no reactor") || error.contains("runtime"), "{error}");
        drop(ours);
    });
}

pub(crate) fn fd<T: Descriptor>(value: T) -> Fd<T> {
    Fd::new(value).unwrap()
}

struct Line(unix::UnixStream);

impl Descriptor for Line {
    fn into_fd(self) -> std::io::Result<OwnedFd> {
        Ok(self.0.into())
    }

    fn from_fd(fd: OwnedFd) -> std::io::Result<Self> {
        Ok(Self(fd.into()))
    }
}

fn a_descriptor_of_ones_own() {
    undisturbed(|| async {
        let (ours, theirs) = stream();
        let says = |line: Fd<Line>| line.into_inner().unwrap().0.write_all(b"of my own").unwrap();
        run_blocking_in_process(says, fd(Line(theirs))).await.unwrap();
        assert_eq!(all_of(ours).await, "of my own");
    });
}

#[derive(Serialize, Deserialize)]
struct Crowd {
    name: String,
    first: Fd<unix::UnixStream>,
    some: Option<Fd<unix::UnixStream>>,
    none: Option<Fd<unix::UnixStream>>,
    all: Vec<Fd<unix::UnixStream>>,
    named: BTreeMap<String, Fd<unix::UnixStream>>,
    nested: Option<Box<Crowd>>,
    fill: Bytes,
}

impl Crowd {
    fn of(count: usize, heard: &mut Vec<unix::UnixStream>) -> Self {
        let mut stream = || {
            let (ours, theirs) = stream();
            heard.push(ours);
            fd(theirs)
        };
        let (first, some) = (stream(), Some(stream()));
        let all = (0..count).map(|_| stream()).collect();
        let named = (0..count).map(|n| (format!("{n:04}"), stream())).collect();
        let nested = (count > 1).then(|| Box::new(Self::of(1, heard)));
        Self { name: "crowd".to_owned(), first, some, none: None, all, named, nested, fill: made(20_000).into() }
    }

    fn says(self, number: &mut usize) {
        let mut says = |stream: Fd<unix::UnixStream>| {
            stream.into_inner().unwrap().write_all(number.to_string().as_bytes()).unwrap();
            *number += 1;
        };
        assert!(self.none.is_none() && self.name == "crowd" && self.fill == made(20_000).into());
        [self.first].into_iter().chain(self.some).chain(self.all).chain(self.named.into_values()).for_each(&mut says);
        if let Some(nested) = self.nested {
            nested.says(number);
        }
    }
}

async fn each_says_its_number(crowd: Crowd) {
    crowd.says(&mut 0);
}

fn descriptors_anywhere_in_a_value() {
    undisturbed(|| async {
        let pool = Pool::builder().workers(1).build().unwrap();
        for count in [0, 1, 5, 60] {
            for (runtime, task) in runtimes(&Task::new()) {
                let mut heard = Vec::new();
                task.run(each_says_its_number, Crowd::of(count, &mut heard)).await.unwrap();
                all_are_right(heard, runtime).await;
            }
            let mut heard = Vec::new();
            run_blocking_in_process(|crowd: Crowd| crowd.says(&mut 0), Crowd::of(count, &mut heard)).await.unwrap();
            all_are_right(heard, "blocking").await;
            let mut heard = Vec::new();
            open_in_process(each_says_its_number, Crowd::of(count, &mut heard)).await.unwrap().wait().await.unwrap();
            all_are_right(heard, "open").await;
            let mut heard = Vec::new();
            pool.run(each_says_its_number, Crowd::of(count, &mut heard)).await.unwrap();
            all_are_right(heard, "pool").await;
        }
        drop(pool);
    });
}

async fn all_are_right(heard: Vec<unix::UnixStream>, way: &str) {
    for (n, stream) in heard.into_iter().enumerate() {
        assert_eq!(all_of(stream).await, n.to_string(), "{way}");
    }
}

fn a_clone_stays_here() {
    undisturbed(|| async {
        let (mut ours, theirs) = stream();
        let theirs = fd(theirs);
        let says = |stream: Fd<unix::UnixStream>, word: String| {
            stream.into_inner().unwrap().write_all(word.as_bytes()).unwrap();
        };
        run_blocking_in_process(says, (theirs.clone(), "one ".to_owned())).await.unwrap();
        // The same one twice in one value, of which the worker has two.
        let both = async |a: Fd<unix::UnixStream>, b: Fd<unix::UnixStream>| {
            a.into_inner().unwrap().write_all(b"two ").unwrap();
            b.into_inner().unwrap().write_all(b"three ").unwrap();
        };
        run_in_process(both, (theirs.clone(), theirs.clone())).await.unwrap();
        // With a clone it is a duplicate; then it is itself.
        theirs.clone().into_inner().unwrap().write_all(b"four ").unwrap();
        theirs.into_inner().unwrap().write_all(b"five").unwrap();
        let mut text = String::new();
        ours.read_to_string(&mut text).unwrap();
        assert_eq!(text, "one two three four five");
    });
}

/// Encodes, and does not decode.
#[derive(Serialize)]
struct Refuses(u8);

impl<'de> Deserialize<'de> for Refuses {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(serde::de::Error::custom("it does not want to"))
    }
}

fn a_value_that_does_not_decode() {
    undisturbed(|| async {
        let pool = Pool::builder().workers(1).build().unwrap();
        let pid = pool.run(async || std::process::id(), ()).await.unwrap();
        let never = async |_: Fd<unix::UnixStream>, _: Refuses, _: Fd<unix::UnixStream>| ();
        for way in 0..3 {
            let ((ours, theirs), (ours_too, theirs_too)) = (stream(), stream());
            let arguments = (fd(theirs), Refuses(1), fd(theirs_too));
            let outcome = match way {
                0 => run_in_process(never, arguments).await,
                1 => open_in_process(never, arguments).await.unwrap().wait().await,
                _ => pool.run(never, arguments).await,
            };
            let error = outcome.unwrap_err();
            assert!(matches!(&error, Error::Decode { what: Coded::Arguments, .. }), "{error:?}");
            assert_eq!((all_of(ours).await, all_of(ours_too).await), (String::new(), String::new()), "way {way}");
        }
        assert_eq!(pool.run(async || std::process::id(), ()).await.unwrap(), pid, "it goes on");
        drop(pool);
    });
}

fn no_descriptor_travels_back() {
    undisturbed(|| async {
        let pool = Pool::builder().workers(1).build().unwrap();
        let opens = async || Fd::from(File::open("/dev/null").unwrap());
        let returns = async |file: Fd<File>| file;
        let null = || Fd::from(File::open("/dev/null").unwrap());
        let errors = [
            run_in_process(opens, ()).await.unwrap_err(),
            run_in_process(returns, null()).await.unwrap_err(),
            open_in_process(opens, ()).await.unwrap().wait().await.unwrap_err(),
            pool.run(returns, null()).await.unwrap_err(),
        ];
        for error in errors {
            let Error::Decode { what: Coded::ResultInWorker, reason, .. } = &error else { panic!("{error:?}") };
            assert!(reason.contains("descriptor") && reason.contains("result"), "{reason}");
        }
        drop(pool);
    });
}
