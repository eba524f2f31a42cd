//! From users to load: what arrives in a second, what stays open, what a day adds.
//!
//! Rates are of the whole system; what one node gets of them is for [`super::cpu`] and [`super::network`].

use serde::Serialize;

use super::rule::Rule;
use super::workload::Workload;

/// What a workload amounts to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Load {
    pub active_users: f64,
    pub appends_per_second_mean: f64,
    pub appends_per_second_peak: f64,
    pub windows_per_second_mean: f64,
    pub windows_per_second_peak: f64,
    pub open_streams: f64,
    pub stream_frames_per_second_peak: f64,
    pub tokens_counted_per_second_peak: f64,
    pub messages_per_day: f64,
    pub message_bytes_per_day: f64,
    /// Conversations begun within the days that the disks are sized for.
    pub conversations_kept: f64,
    pub messages_kept: f64,
    /// Conversations that the active users are in.
    pub conversations_active: f64,
}

pub const ACTIVE_USERS: Rule = Rule {
    id: "load.active_users",
    title: "users active at once in the busy hours",
    formula: "users × peak_share, at least 1",
    inputs: "--users, --peak-share",
    source: "StudyGuru: 200 to 300 of 1,000 users (20 to 30 %) are active at once; the default is the upper end",
    departs: "",
};

pub const APPENDS: Rule = Rule {
    id: "load.appends",
    title: "messages appended in a second",
    formula: "mean = active_users × messages_per_user_minute / 60; peak = mean × peak_factor",
    inputs: "load.active_users, --messages-per-user-minute, --peak-factor",
    source: "StudyGuru: 2 to 5 requests a user and minute on average, 10 to 20 at the peak; the defaults are 3 and 10 / 3 times that",
    departs: "StudyGuru has 250 of its 300 active users ask (200 × 3 + 50 × 1 a minute, about 11/s) and 50/s at the peak; \
              all 300 at 3 a minute are 15/s, and 10 a minute are its 50/s. Every message is a request of its own here; a \
              client that sends the user's message and the answer in one batch halves the requests.",
};

pub const WINDOWS: Rule = Rule {
    id: "load.windows",
    title: "windows read in a second",
    formula: "appends × windows_per_message",
    inputs: "load.appends, --windows-per-message",
    source: "this server: an application reads the window before it calls a model",
    departs: "the guides have no such read; their model calls (StudyGuru: 50 to 100 at once) run elsewhere",
};

pub const STREAMS: Rule = Rule {
    id: "load.streams",
    title: "open streams, and frames sent on them",
    formula: "streams = active_users × streams_share; frames at the peak = appends × streams_share",
    inputs: "load.active_users, --streams-share, load.appends",
    source: "StudyGuru: 150 websockets for 300 active users, which is the default of 0.5",
    departs: "",
};

pub const DAY: Rule = Rule {
    id: "load.day",
    title: "messages and bytes of a day",
    formula: "messages = mean appends × 3,600 × busy_hours_per_day; bytes = messages × message_bytes",
    inputs: "load.appends, --busy-hours-per-day, --message-bytes",
    source: "arithmetic; the default of 8 busy hours is a working day",
    departs: "no guide says how long the busy hours last; quiet hours count as nothing, so raise it for a round-the-clock service",
};

pub const KEPT: Rule = Rule {
    id: "load.kept",
    title: "messages and conversations that the disks are sized for",
    formula: "messages = messages a day × retention_days; conversations = messages / messages_per_conversation, at least one an active user",
    inputs: "load.day, --retention-days, --messages-per-conversation",
    source: "arithmetic",
    departs: "Fastpaca has Postgres for what is older than its \"snapshot retention window\"; here no message leaves a disk for its age (growth.timeline)",
};

impl Load {
    pub fn of(workload: &Workload) -> Load {
        let active_users = (workload.users as f64 * workload.peak_share).max(1.0);
        let mean = active_users * workload.messages_per_user_minute / 60.0;
        let peak = mean * workload.peak_factor;
        let messages_per_day = mean * 3_600.0 * workload.busy_hours_per_day;
        let messages_kept = messages_per_day * workload.retention_days as f64;
        let conversations = messages_kept / workload.messages_per_conversation as f64;
        Load {
            active_users,
            appends_per_second_mean: mean,
            appends_per_second_peak: peak,
            windows_per_second_mean: mean * workload.windows_per_message,
            windows_per_second_peak: peak * workload.windows_per_message,
            open_streams: active_users * workload.streams_share,
            stream_frames_per_second_peak: peak * workload.streams_share,
            tokens_counted_per_second_peak: peak * workload.tokens_per_message as f64,
            messages_per_day,
            message_bytes_per_day: messages_per_day * workload.message_bytes as f64,
            conversations_kept: conversations.max(active_users),
            messages_kept,
            conversations_active: active_users,
        }
    }
}
