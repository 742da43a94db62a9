-- What one statement could still spoil: time and epoch go forward in sensible steps, a checkpoint is of what is there, and a revoked
-- key stays revoked. Until now an epoch could be set so high that it could not be raised, a time so far ahead that no true one came
-- after it, and a checkpoint so large that none could follow.
CREATE TRIGGER heads_steps BEFORE UPDATE ON heads
WHEN NEW.epoch > OLD.epoch + 1
    -- A day: clocks differ, and the server refuses at a difference of seconds. Where nothing is published a log is being restored, with
    -- whatever times it has.
    OR (NEW.logged_at > OLD.logged_at
        AND (NEW.size = OLD.size OR (OLD.published_size > 0 AND NEW.logged_at > unixepoch() * 1000 + 86400000)))
BEGIN SELECT RAISE(ABORT, 'muniment: an epoch goes up by one; the time of a head is that of an entry, and not in the future'); END;
CREATE TRIGGER heads_published BEFORE UPDATE OF published_size ON heads
WHEN NEW.published_size > OLD.published_size
    AND NOT EXISTS (SELECT 1 FROM checkpoints WHERE log_id = NEW.log_id AND size = NEW.published_size)
BEGIN SELECT RAISE(ABORT, 'muniment: what is published is a checkpoint'); END;

CREATE TRIGGER checkpoints_of_what_is_there BEFORE INSERT ON checkpoints
WHEN NEW.size > coalesce((SELECT size FROM heads WHERE log_id = NEW.log_id), -1)
BEGIN SELECT RAISE(ABORT, 'muniment: a checkpoint is not beyond the head'); END;

CREATE TRIGGER api_keys_once BEFORE INSERT ON api_keys
WHEN EXISTS (SELECT 1 FROM api_keys WHERE key_id = NEW.key_id OR digest = NEW.digest)
BEGIN SELECT RAISE(ABORT, 'muniment: an API key is made once'); END;
CREATE TRIGGER api_keys_stay BEFORE UPDATE ON api_keys
WHEN NEW.key_id IS NOT OLD.key_id OR NEW.digest IS NOT OLD.digest OR NEW.scopes IS NOT OLD.scopes OR NEW.log_name IS NOT OLD.log_name
    OR NEW.label IS NOT OLD.label OR NEW.created_at IS NOT OLD.created_at
    OR (OLD.revoked_at IS NOT NULL AND NEW.revoked_at IS NOT OLD.revoked_at)
BEGIN SELECT RAISE(ABORT, 'muniment: an API key never changes, and once revoked it stays so'); END;
CREATE TRIGGER api_keys_no_delete BEFORE DELETE ON api_keys
BEGIN SELECT RAISE(ABORT, 'muniment: DELETE on api_keys is refused'); END;
