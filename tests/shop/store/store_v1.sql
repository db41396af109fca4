-- A store as the first version of the schema left it.
BEGIN TRANSACTION;
CREATE TABLE events (sequence INTEGER PRIMARY KEY AUTOINCREMENT, event_id TEXT NOT NULL, shopper TEXT NOT NULL,
        item TEXT NOT NULL, kind TEXT NOT NULL, value REAL, timestamp REAL NOT NULL, list_id TEXT);
INSERT INTO "events" VALUES(1,'order 1','ann','tea','purchase',2.0,1700000000.0,NULL);
INSERT INTO "events" VALUES(2,'view 1','bob','cup','view',NULL,1700000001.0,'list-1');
CREATE TABLE facts (name TEXT PRIMARY KEY, number BIGINT NOT NULL, secret BLOB);
INSERT INTO "facts" VALUES('generation',0,NULL);
INSERT INTO "facts" VALUES('hash key',0,X'0707070707070707070707070707070707070707070707070707070707070707');
CREATE TABLE items (key TEXT PRIMARY KEY, sequence BIGINT NOT NULL, title TEXT NOT NULL,
        category TEXT NOT NULL, price REAL, stock BIGINT, is_hidden SMALLINT NOT NULL,
        is_deleted SMALLINT NOT NULL, created REAL NOT NULL);
INSERT INTO "items" VALUES('tea',1,'Green tea','food',4.5,3,0,0,1600000000.0);
CREATE TABLE schema_version (version INTEGER PRIMARY KEY, at REAL NOT NULL);
INSERT INTO "schema_version" VALUES(1,1700000000.0);
CREATE TABLE tombstones (shopper_hash BLOB PRIMARY KEY, erased_at REAL NOT NULL);
CREATE UNIQUE INDEX events_by_id ON events (event_id);
CREATE INDEX events_by_shopper ON events (shopper, timestamp, sequence);
CREATE INDEX items_by_change ON items (sequence);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('events',2);
COMMIT;
