-- What one statement of the server's role could still spoil: time and epoch go forward in sensible steps, a checkpoint is of what is
-- there, and a revoked key stays revoked. Until now an epoch could be set so high that it could not be raised, a time so far ahead that
-- no true one came after it, and a checkpoint so large that none could follow.

CREATE OR REPLACE FUNCTION muniment_head_advances() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.log_id <> OLD.log_id OR NEW.size < OLD.size OR (NEW.size = OLD.size AND NEW.root <> OLD.root)
        OR NEW.logged_at < OLD.logged_at OR NEW.epoch < OLD.epoch OR NEW.published_size < OLD.published_size THEN
        RAISE EXCEPTION 'muniment: a head may only advance' USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    IF NEW.epoch > OLD.epoch + 1 THEN
        RAISE EXCEPTION 'muniment: an epoch goes up by one' USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    -- A day: clocks differ, and the server refuses at a difference of seconds. Where nothing is published a log is being restored, with
    -- whatever times it has.
    IF NEW.logged_at > OLD.logged_at AND (NEW.size = OLD.size
        OR (OLD.published_size > 0 AND NEW.logged_at > extract(epoch FROM clock_timestamp()) * 1000 + 86400000)) THEN
        RAISE EXCEPTION 'muniment: the time of a head is that of an entry, and not in the future' USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END $$;

CREATE OR REPLACE FUNCTION muniment_checkpoint_larger() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM checkpoints c WHERE c.log_id = NEW.log_id AND c.size >= NEW.size) THEN
        RAISE EXCEPTION 'muniment: a published checkpoint is larger than those before it' USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    IF NOT EXISTS (SELECT FROM heads h WHERE h.log_id = NEW.log_id AND h.size >= NEW.size) THEN
        RAISE EXCEPTION 'muniment: a checkpoint is not beyond the head' USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END $$;

CREATE FUNCTION muniment_published_is_there() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.published_size > OLD.published_size
        AND NOT EXISTS (SELECT FROM checkpoints c WHERE c.log_id = NEW.log_id AND c.size = NEW.published_size) THEN
        RAISE EXCEPTION 'muniment: what is published is a checkpoint' USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION muniment_key_stays() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (NEW.key_id, NEW.digest, NEW.scopes, NEW.log_name, NEW.label, NEW.created_at)
            IS DISTINCT FROM (OLD.key_id, OLD.digest, OLD.scopes, OLD.log_name, OLD.label, OLD.created_at)
        OR (OLD.revoked_at IS NOT NULL AND NEW.revoked_at IS DISTINCT FROM OLD.revoked_at) THEN
        RAISE EXCEPTION 'muniment: an API key never changes, and once revoked it stays so' USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END $$;

-- After the statement: publishing stores the checkpoint in it. Appends do not set the column.
CREATE TRIGGER heads_published AFTER UPDATE OF published_size ON heads FOR EACH ROW EXECUTE FUNCTION muniment_published_is_there();
CREATE TRIGGER api_keys_stay BEFORE UPDATE ON api_keys FOR EACH ROW EXECUTE FUNCTION muniment_key_stays();
CREATE TRIGGER api_keys_no_delete BEFORE DELETE ON api_keys FOR EACH ROW EXECUTE FUNCTION muniment_refuse();
CREATE TRIGGER api_keys_no_truncate BEFORE TRUNCATE ON api_keys EXECUTE FUNCTION muniment_refuse();

ALTER TABLE heads ENABLE ALWAYS TRIGGER heads_published;
ALTER TABLE api_keys ENABLE ALWAYS TRIGGER api_keys_stay, ENABLE ALWAYS TRIGGER api_keys_no_delete, ENABLE ALWAYS TRIGGER api_keys_no_truncate;
