//! The two vocabularies of one API.
//!
//! Every route exists once per dialect and is served by the same handler; the dialect only chooses words. A client of
//! one dialect never sees a word of the other, error messages included.

/// Which vocabulary a request was made in, decided by its path alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Dialect {
    /// `/v1/conversations/{id}/events`, `/window`.
    Conversations,
    /// `/v1/contexts/{id}/messages`, `/context`.
    Contexts,
}

impl Dialect {
    pub(crate) const ALL: [Dialect; 2] = [Dialect::Conversations, Dialect::Contexts];

    /// The dialect of a request path; paths that belong to neither (health, metrics) speak the primary one.
    pub(crate) fn of_path(path: &str) -> Dialect {
        match path.strip_prefix("/v1/contexts") {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => Dialect::Contexts,
            _ => Dialect::Conversations,
        }
    }

    /// The path segment of the collection, and the key of a listing.
    pub(crate) fn resources(self) -> &'static str {
        match self {
            Dialect::Conversations => "conversations",
            Dialect::Contexts => "contexts",
        }
    }

    /// What one resource is called in messages.
    pub(crate) fn resource(self) -> &'static str {
        match self {
            Dialect::Conversations => "conversation",
            Dialect::Contexts => "context",
        }
    }

    /// As [`Dialect::resource`], at the beginning of a sentence.
    pub(crate) fn resource_capitalised(self) -> &'static str {
        match self {
            Dialect::Conversations => "Conversation",
            Dialect::Contexts => "Context",
        }
    }

    /// The path segment of the log, and the key of a batch or a page.
    pub(crate) fn events(self) -> &'static str {
        match self {
            Dialect::Conversations => "events",
            Dialect::Contexts => "messages",
        }
    }

    /// The key of one log entry, and its stream frame type.
    pub(crate) fn event(self) -> &'static str {
        match self {
            Dialect::Conversations => "event",
            Dialect::Contexts => "message",
        }
    }

    /// The path segment of the window, and the type of the stream frame that tells its size.
    pub(crate) fn window(self) -> &'static str {
        match self {
            Dialect::Conversations => "window",
            Dialect::Contexts => "context",
        }
    }

    /// The query parameter that switches event frames of a stream off.
    pub(crate) fn include_flag(self) -> &'static str {
        match self {
            Dialect::Conversations => "includeEvents",
            Dialect::Contexts => "include_messages",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Dialect;

    #[test]
    fn the_path_decides() {
        assert_eq!(Dialect::of_path("/v1/contexts"), Dialect::Contexts);
        assert_eq!(Dialect::of_path("/v1/contexts/a/messages"), Dialect::Contexts);
        assert_eq!(Dialect::of_path("/v1/contextsx"), Dialect::Conversations);
        assert_eq!(Dialect::of_path("/v1/conversations/contexts"), Dialect::Conversations);
        assert_eq!(Dialect::of_path("/health/live"), Dialect::Conversations);
    }
}
