-- The archive of conversation logs. Every table is keyed by the cluster that wrote it, so that several clusters, or a
-- cluster and what it was restored from, can share a database. Rows of events and changes are written once and never
-- changed; ids compare by bytes, whatever the collation of the database.

CREATE TABLE fastpaca.conversations (
    cluster_id        uuid NOT NULL,
    id                text COLLATE "C" NOT NULL,
    status            text NOT NULL,             -- active, tombstoned
    version           bigint NOT NULL,           -- the version that this row describes
    archived_version  bigint NOT NULL,           -- events and changes up to here are in the archive
    last_seq          bigint NOT NULL,
    token_budget      bigint NOT NULL,
    trigger_ratio     double precision NOT NULL,
    policy            jsonb NOT NULL,
    metadata          jsonb NOT NULL,
    metadata_text     text NOT NULL,             -- the bytes as they were received
    created_at        timestamptz NOT NULL,
    updated_at        timestamptz NOT NULL,
    PRIMARY KEY (cluster_id, id)
);

CREATE TABLE fastpaca.events (
    cluster_id        uuid NOT NULL,
    conversation_id   text COLLATE "C" NOT NULL,
    seq               bigint NOT NULL,
    version           bigint NOT NULL,
    inserted_at       timestamptz NOT NULL,
    token_count       bigint NOT NULL,
    escaped           boolean NOT NULL,          -- role, parts or metadata differ from body where they could not hold it
    role              text NOT NULL,
    parts             jsonb NOT NULL,
    metadata          jsonb NOT NULL,
    part_tokens       bigint[],                  -- tokens of each part; NULL for one text part
    marker_tokens     bigint[],                  -- tokens of the marker that may stand for a part
    body              text NOT NULL,             -- role, parts and metadata as they were received
    digest            bytea NOT NULL,
    PRIMARY KEY (cluster_id, conversation_id, seq)
);

CREATE TABLE fastpaca.changes (
    cluster_id        uuid NOT NULL,
    conversation_id   text COLLATE "C" NOT NULL,
    version           bigint NOT NULL,
    kind              text NOT NULL,             -- created, settings, metadata, compaction, tombstoned
    payload           jsonb NOT NULL,
    payload_text      text NOT NULL,             -- with the bytes as they were received
    digest            bytea NOT NULL,
    PRIMARY KEY (cluster_id, conversation_id, version)
);

-- Rows arrive nearly in the order of their time, so that a summary of each run of pages finds a range of it.
CREATE INDEX events_inserted_at ON fastpaca.events USING brin (inserted_at) WITH (pages_per_range = 32);
-- For questions that begin with a member of the metadata of conversations.
CREATE INDEX conversations_metadata ON fastpaca.conversations USING gin (metadata jsonb_path_ops);
