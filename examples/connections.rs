//! A TCP server that serves every connection in a fresh process, as OpenSSH and Postgres do: a client that brings its
//! process down takes nobody along.
//!
//! `cargo run --example connections [-- 127.0.0.1:7007]`, then `nc 127.0.0.1 7007`: what you type comes back in capitals,
//! `crash` crashes. With `--demo` it is its own client.

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};
use tokio_run_in_process::{Fd, block_on, run_in_process};

async fn serve(connection: Fd<TcpStream>) {
    let mut connection = BufReader::new(connection.into_inner().expect("a tokio runtime"));
    let mut line = String::new();
    while connection.read_line(&mut line).await.is_ok_and(|n| n > 0) {
        if line.trim() == "crash" {
            std::process::abort(); // as a bug in native code would
        }
        let answer = format!("[{}] {}", std::process::id(), line.to_uppercase());
        if connection.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
        line.clear();
    }
}

async fn accept(listener: TcpListener) -> std::io::Result<()> {
    loop {
        let (connection, client) = listener.accept().await?;
        let connection = Fd::new(connection)?;
        tokio::spawn(async move {
            if let Err(error) = run_in_process(serve, connection).await {
                eprintln!("{client}: {error}");
            }
        });
    }
}

async fn demo(address: std::net::SocketAddr) -> std::io::Result<()> {
    for words in ["hello\n", "crash\n", "still here\n"] {
        let mut client = TcpStream::connect(address).await?;
        client.write_all(words.as_bytes()).await?;
        client.shutdown().await?;
        let mut answer = String::new();
        client.read_to_string(&mut answer).await?;
        println!("{} -> {}", words.trim(), answer.trim());
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let argument = std::env::args().nth(1);
    block_on(async {
        let is_demo = argument.as_deref() == Some("--demo");
        let address = argument.filter(|_| !is_demo).unwrap_or_else(|| "127.0.0.1:0".to_owned());
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        println!("listening on {address}");
        if is_demo {
            tokio::spawn(accept(listener));
            demo(address).await?;
        } else {
            accept(listener).await?;
        }
        Ok(())
    })?
}
