//! Where frames come from: the conversation's changes read from the log, first the past, then as they happen.
//!
//! There is no seam between replay and live, because there is only one way to get a change: reading what follows the
//! position. Being woken merely says that reading again is worthwhile. Nothing is queued per stream beyond one page, so
//! that a slow reader costs a page of memory and nothing else. What has to be looked up for a change is looked up when
//! its frame's turn has come: a page of nothing but settings is no single piece of work.

use std::collections::VecDeque;
use std::error::Error;
use std::time::Duration;

use prometheus::IntCounter;
use tokio::time::{Instant, sleep_until};

use super::frame::Frame;
use crate::api::Scope;
use crate::api::dialect::Dialect;
use crate::api::error::ApiError;
use crate::conversation::{ConversationId, Status};
use crate::shards::{Change, ChangePage, ReadError, ReadOptions, Shards, Usage, Watcher};

/// Bytes of message bodies read at once (at least one change).
const PAGE_BYTES: u64 = 64 << 10;
/// `window` frames for events are at least this far apart.
const WINDOW_EVERY: Duration = Duration::from_millis(250);

/// The frames of one stream, in order.
pub(super) struct Source {
    shards: Shards,
    id: ConversationId,
    dialect: Dialect,
    watcher: Watcher,
    include_events: bool,
    /// The version of the last change turned into frames.
    position: u64,
    /// The version of the last frame taken.
    delivered: u64,
    frames_total: IntCounter,
    /// Changes behind the position that were read and not yet turned into frames.
    page: VecDeque<Change>,
    /// Frames not yet taken.
    ready: VecDeque<Frame>,
    /// The stream has caught up once, so that what comes now is news.
    is_live: bool,
    /// News changed the window since the last `window` frame.
    owes_window: bool,
    next_window: Instant,
    /// The conversation is deleted and everything was delivered.
    is_over: bool,
    /// The client had everything, the deletion included, when it came.
    is_spent: bool,
}

impl Source {
    /// Begins behind `cursor`; at the beginning for 0, with what comes next for none.
    pub(super) async fn open(
        scope: &Scope,
        id: ConversationId,
        cursor: Option<u64>,
        include_events: bool,
    ) -> Result<Source, ApiError> {
        let shards = scope.app.shards.clone();
        let described = shards.describe(&id, ReadOptions::default()).await?.ok_or(ApiError::NotFound)?;
        let current = described.version;
        let watcher = shards.watch(&id)?;
        let position = cursor.unwrap_or(current).min(current);
        let mut source = Source {
            shards,
            id,
            dialect: scope.dialect,
            watcher,
            include_events,
            position,
            delivered: position,
            frames_total: scope.app.metrics.stream_frames_total.clone(),
            page: VecDeque::new(),
            ready: VecDeque::new(),
            // Who begins at the newest version has nothing to catch up with.
            is_live: position == current,
            owes_window: false,
            next_window: Instant::now(),
            is_over: false,
            is_spent: described.status == Status::Tombstoned && cursor == Some(current),
        };
        if cursor.is_some_and(|cursor| cursor > current) {
            source.ready.push_back(Frame::reset(current));
        }
        Ok(source)
    }

    /// The cursor of a client that has processed every frame taken so far, were it to ask now.
    pub(super) fn position(&self) -> u64 {
        if self.ready.is_empty() { self.position } else { self.delivered }
    }

    /// Whether the client knows already that nothing will follow.
    pub(super) fn is_spent(&self) -> bool {
        self.is_spent
    }

    /// Whether a frame can be had without waiting.
    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// The next frame if it can be had without waiting.
    pub(super) fn take_ready(&mut self) -> Option<Frame> {
        let frame = self.ready.pop_front()?;
        self.frames_total.inc();
        self.delivered = frame.version;
        Some(frame)
    }

    /// Logs why the stream ends before its time.
    pub(super) fn broken_off(&self, error: &dyn Error) {
        let id = self.id.as_str();
        tracing::error!(event = "stream_broken_off", conversation_id = id, version = self.position, %error);
    }

    /// The next frame; `None` after the last one. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Result<Option<Frame>, ReadError> {
        loop {
            if let Some(frame) = self.take_ready() {
                return Ok(Some(frame));
            }
            if self.is_over {
                return Ok(None);
            }
            if let Some(change) = self.page.front() {
                if let Change::Settings { version } = *change {
                    // Others have their turn between two of them.
                    tokio::task::yield_now().await;
                    let usage = self.usage(version).await?;
                    self.page.pop_front();
                    self.on_settings(version, usage);
                }
                self.on_changes();
                continue;
            }
            if self.owes_window && Instant::now() >= self.next_window {
                let usage = self.usage(self.position).await?;
                self.push_window(usage);
                continue;
            }
            let page = self.shards.changes(&self.id, self.position, PAGE_BYTES).await?;
            let page = page.ok_or_else(|| ReadError::Internal("the conversation vanished".into()))?;
            if page.changes.is_empty() {
                self.on_caught_up(&page).await;
            } else {
                self.page = page.changes.into();
            }
        }
    }

    /// Turns the page into frames, up to the first change that something has to be looked up for.
    fn on_changes(&mut self) {
        while let Some(change) = self.page.pop_front() {
            let version = version_of(&change);
            if let Change::Settings { .. } = change {
                return self.page.push_front(change);
            }
            self.advance(version);
            match change {
                Change::Event { event, .. } => {
                    self.owes_window |= self.is_live;
                    if self.include_events {
                        self.ready.push_back(Frame::event(self.dialect, version, &event));
                    }
                }
                Change::Compaction { from_seq, to_seq, .. } => {
                    self.owes_window |= self.is_live;
                    self.ready.push_back(Frame::compaction(version, from_seq, to_seq));
                }
                Change::Settings { .. } => unreachable!("handled above"),
                Change::Tombstoned { .. } => {
                    self.ready.push_back(Frame::tombstoned(version));
                    self.is_over = true;
                    self.owes_window = false;
                }
            }
        }
    }

    /// The one frame that tells of this version, so it is sent for the past too.
    fn on_settings(&mut self, version: u64, usage: Usage) {
        self.advance(version);
        self.ready.push_back(Frame::window(self.dialect, version, usage));
        self.owes_window = false;
    }

    fn advance(&mut self, version: u64) {
        if version > self.position + 1 {
            self.ready.push_back(Frame::gap(self.position + 1, version));
        }
        self.position = version;
    }

    /// Waits for news, or until a `window` frame is due.
    async fn on_caught_up(&mut self, page: &ChangePage) {
        self.is_live = true;
        if page.status == Status::Tombstoned && self.position >= page.version {
            self.ready.push_back(Frame::tombstoned(page.version));
            self.is_over = true;
            return;
        }
        if page.version > self.position {
            self.ready.push_back(Frame::gap(self.position + 1, page.version + 1));
            self.position = page.version;
            return;
        }
        tokio::select! {
            _ = self.watcher.beyond(self.position) => {}
            () = sleep_until(self.next_window), if self.owes_window => {}
        }
    }

    fn push_window(&mut self, usage: Usage) {
        self.ready.push_back(Frame::window(self.dialect, self.position, usage));
        self.owes_window = false;
        self.next_window = Instant::now() + WINDOW_EVERY;
    }

    /// As of exactly the version delivered: a newer one would make the client skip what it has not seen yet.
    async fn usage(&self, version: u64) -> Result<Usage, ReadError> {
        let usage = self.shards.usage(&self.id, version).await?;
        usage.ok_or_else(|| ReadError::Internal("the conversation vanished".into()))
    }
}

fn version_of(change: &Change) -> u64 {
    match change {
        Change::Event { version, .. }
        | Change::Compaction { version, .. }
        | Change::Settings { version }
        | Change::Tombstoned { version } => *version,
    }
}
