-- Pages that came since the last vacuum are unknown to a brin index, and every question has to read them. Postgres now
-- summarizes a range of pages as soon as the next one begins.
ALTER INDEX fastpaca.events_inserted_at SET (autosummarize = on);
