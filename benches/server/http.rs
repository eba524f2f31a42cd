//! The smallest HTTP/1.1 client that measures: one keep-alive connection, one request at a time, answers with a
//! `content-length`.
//!
//! It shares two cores with the server it measures, so it parses only what it needs and allocates nothing per request.

use std::io::{Error, ErrorKind, Result};
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longest answer taken, so that a confused server cannot fill the load generator's memory.
const ANSWER_BYTES_MAX: usize = 64 << 20;

pub(crate) struct Connection {
    stream: TcpStream,
    inbox: Vec<u8>,
    /// The server said that it closes after this answer.
    closing: bool,
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr) -> Result<Connection> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Connection { stream, inbox: Vec::with_capacity(16 << 10), closing: false })
    }

    /// Whether the server has closed the connection between two requests, or announced it.
    #[allow(dead_code)] // Only clients of a server that stops have to look.
    pub(crate) fn is_over(&self) -> bool {
        self.closing
            || !matches!(self.stream.try_read(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock)
    }

    /// Bytes of the last answer, head and body.
    #[allow(dead_code)] // Only traffic that is counted has to be known.
    pub(crate) fn answer_bytes(&self) -> usize {
        self.inbox.len()
    }

    /// Sends one whole request and reads its answer: the status and the body, which lies in this connection's buffer.
    pub(crate) async fn exchange(&mut self, request: &[u8]) -> Result<(u16, &[u8])> {
        self.stream.write_all(request).await?;
        self.inbox.clear();
        let head = loop {
            self.fill().await?;
            if let Some(head) = Head::parse(&self.inbox)? {
                break head;
            }
        };
        while self.inbox.len() < head.end + head.content_length {
            self.fill().await?;
        }
        self.closing = head.close;
        Ok((head.status, &self.inbox[head.end..head.end + head.content_length]))
    }

    async fn fill(&mut self) -> Result<()> {
        if self.inbox.len() > ANSWER_BYTES_MAX {
            return Err(Error::new(ErrorKind::InvalidData, "answer too long"));
        }
        match self.stream.read_buf(&mut self.inbox).await? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

struct Head {
    status: u16,
    /// Where the body begins.
    end: usize,
    content_length: usize,
    /// `connection: close`
    close: bool,
}

impl Head {
    /// `None` until the blank line after the headers has come.
    fn parse(bytes: &[u8]) -> Result<Option<Head>> {
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
        let invalid = |what| Error::new(ErrorKind::InvalidData, what);
        let text = std::str::from_utf8(&bytes[..end]).map_err(|_| invalid("answer head is not UTF-8"))?;
        let mut lines = text.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|code| code.parse().ok());
        let (mut content_length, mut close) = (0, false);
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            if name.eq_ignore_ascii_case("content-length") {
                content_length =
                    value.trim().parse().map_err(|_| invalid("content-length is not a number"))?;
            } else if name.eq_ignore_ascii_case("connection") {
                close = value.trim().eq_ignore_ascii_case("close");
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                return Err(invalid("chunked answers are not understood"));
            }
        }
        Ok(Some(Head { status: status.ok_or(invalid("no status"))?, end: end + 4, content_length, close }))
    }
}
