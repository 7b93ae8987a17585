//! An HTTP server that does the risky work of each request in a process of its own, and stays up when that crashes.
//!
//! `cargo run --example server [-- 127.0.0.1:8080]`, then `curl http://127.0.0.1:8080/5` (and `/crash`, `/panic`,
//! `/hang`). With `--demo` it sends itself three requests, prints the answers and ends.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};
use tokio_run_in_process::{Task, block_on};

/// What one would not like to do in the server's own process.
async fn risky(path: String) -> Result<String, String> {
    match path.as_str() {
        "crash" => std::process::abort(), // as a bug in native code would
        "panic" => panic!("a bug in this handler"),
        "hang" => std::future::pending().await,
        number => number.parse::<u64>().map(|n| format!("{n} * {n} = {}", n * n)).map_err(|e| e.to_string()),
    }
}

async fn answer(mut stream: TcpStream) -> io::Result<()> {
    let mut request = String::new();
    BufReader::new(&mut stream).take(8192).read_line(&mut request).await?; // "GET /5 HTTP/1.1"
    let path = request.split(' ').nth(1).unwrap_or("/").trim_start_matches('/').to_owned();
    // If the client goes away or the server stops, this future is dropped and the work ends with it.
    let (status, text) = match Task::new().name("request").timeout(Duration::from_secs(2)).run(risky, path).await {
        Ok(Ok(text)) => ("200 OK", text),
        Ok(Err(text)) => ("400 Bad Request", text),
        Err(e) if e.is_timeout() => ("504 Gateway Timeout", e.to_string()),
        // The call chain of a panic, from the second line on, is nothing for a client.
        Err(e) => ("500 Internal Server Error", e.to_string().lines().next().unwrap_or_default().to_owned()),
    };
    let length = text.len() + 1;
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    stream.write_all(format!("{head}{text}\n").as_bytes()).await
}

async fn serve(listener: TcpListener) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(answer(stream));
    }
}

async fn get(address: std::net::SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let argument = std::env::args().nth(1);
    let demo = argument.as_deref() == Some("--demo");
    block_on(async {
        let listener = TcpListener::bind(argument.filter(|_| !demo).as_deref().unwrap_or("127.0.0.1:0")).await?;
        let address = listener.local_addr()?;
        println!("listening on http://{address}");
        if !demo {
            return Ok(serve(listener).await?);
        }
        tokio::spawn(serve(listener));
        for path in ["/5", "/crash", "/6"] {
            let answer = get(address, path).await?;
            let (head, text) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
            println!("GET {path} -> {} | {}", head.lines().next().unwrap_or(""), text.trim_end());
        }
        Ok(())
    })?
}
