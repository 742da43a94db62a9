#!/bin/sh
# Entry point of the image. Arguments:
#   serve [...]   bring the database's schema up to date, make the log on the very first start, serve (the default)
#   init          schema and log only; safe to run again after a crash
#   ...           anything else is handed to muniment-server: `key create --scope append --label bootstrap`
set -eu

if [ -n "${PGPASSWORD_FILE:-}" ]; then
    PGPASSWORD=$(cat "$PGPASSWORD_FILE")
    export PGPASSWORD
fi

make_log() {
    if [ -z "${MUNIMENT_ORIGIN:-}" ]; then
        echo "entrypoint: set MUNIMENT_ORIGIN to the name of the log, for example example.com/log; it can never be changed" >&2
        exit 2
    fi
    muniment-server init --data "$MUNIMENT_SERVER_DATA" --origin "$MUNIMENT_ORIGIN" --kind "${MUNIMENT_KIND:-event}"
}

case "${1:-serve}" in
    serve)
        [ "$#" -eq 0 ] || shift
        muniment-server migrate --data "$MUNIMENT_SERVER_DATA"
        # Only where nothing has been made yet. A log whose guard or database was lost must not be made a second time by a restart:
        # that is for a person to decide.
        [ -e "$MUNIMENT_SERVER_DATA/policy" ] || make_log
        exec muniment-server serve --data "$MUNIMENT_SERVER_DATA" "$@"
        ;;
    init)
        muniment-server migrate --data "$MUNIMENT_SERVER_DATA"
        make_log
        ;;
    *)
        exec muniment-server "$@"
        ;;
esac
