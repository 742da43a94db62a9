package main

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const (
	tileHeight = 8
	tileWidth  = 1 << tileHeight
	maxAnswer  = 32 << 20
)

// hashes is a whole tree in sumdb's storage order.
type hashes []tlog.Hash

// ReadHashes implements tlog.HashReader.
func (h hashes) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	found := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		if index >= int64(len(h)) {
			return nil, fmt.Errorf("no hash %d among %d", index, len(h))
		}
		found[i] = h[index]
	}
	return found, nil
}

// log is a log that is not trusted: only its key is.
type log struct {
	url    string
	origin string
	keys   note.Verifiers
	client *http.Client
}

func newLog(url, vkey string) (*log, error) {
	verifier, err := note.NewVerifier(vkey)
	if err != nil {
		return nil, fmt.Errorf("vkey: %w", err)
	}
	client := &http.Client{Timeout: 30 * time.Second}
	return &log{url, verifier.Name(), note.VerifierList(verifier), client}, nil
}

// get returns the body of a 200 answer.
func (l *log) get(path string) ([]byte, error) {
	answer, err := l.client.Get(l.url + "/" + path)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
	if err != nil {
		return nil, err
	}
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("GET %s: %s", path, answer.Status)
	}
	return body, nil
}

// getJSON decodes the body of a 200 answer.
func (l *log) getJSON(path string, into any) error {
	body, err := l.get(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(body, into)
}

// open checks the signature of a checkpoint (C2SP tlog-checkpoint without extension lines) and returns its tree.
func (l *log) open(message []byte) (tlog.Tree, error) {
	opened, err := note.Open(message, l.keys)
	if err != nil {
		return tlog.Tree{}, err
	}
	lines := strings.Split(opened.Text, "\n")
	if len(lines) != 4 || lines[3] != "" || lines[0] != l.origin {
		return tlog.Tree{}, errors.New("not a checkpoint of " + l.origin)
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil || size < 1 || strconv.FormatInt(size, 10) != lines[1] {
		return tlog.Tree{}, fmt.Errorf("tree size %q", lines[1])
	}
	root, err := tlog.ParseHash(lines[2])
	return tlog.Tree{N: size, Hash: root}, err
}

// latest returns the tree of the latest checkpoint.
func (l *log) latest() (tlog.Tree, error) {
	message, err := l.get("checkpoint")
	if err != nil {
		return tlog.Tree{}, err
	}
	return l.open(message)
}

// published returns the trees of all published checkpoints.
func (l *log) published() ([]tlog.Tree, error) {
	var trees []tlog.Tree
	for start := int64(0); ; {
		var page struct {
			Checkpoints []struct {
				Size       int64
				Checkpoint string
			}
			Next *int64
		}
		if err := l.getJSON(fmt.Sprintf("checkpoints?start=%d&limit=1000", start), &page); err != nil {
			return nil, err
		}
		for _, one := range page.Checkpoints {
			tree, err := l.open([]byte(one.Checkpoint))
			if err != nil || tree.N != one.Size {
				return nil, fmt.Errorf("of size %d: %w", one.Size, errors.Join(err, errors.New("does not open to that size")))
			}
			trees = append(trees, tree)
		}
		if page.Next == nil {
			return trees, nil
		}
		start = *page.Next
	}
}

// path returns the C2SP tlog-tiles path of a tile: sumdb's without the height, with "entries" for "data".
func path(tile tlog.Tile) string {
	return strings.NewReplacer("tile/8/data/", "tile/entries/", "tile/8/", "tile/").Replace(tile.Path())
}

// bundle returns the entries of bundle n, which must hold exactly width of them.
func (l *log) bundle(n int64, width int) ([][]byte, error) {
	data, err := l.get(path(tlog.Tile{H: tileHeight, L: -1, N: n, W: width}))
	if err != nil {
		return nil, err
	}
	var records [][]byte
	for len(data) > 0 {
		if len(data) < 2 || len(data) < 2+int(binary.BigEndian.Uint16(data)) {
			return nil, fmt.Errorf("cut off in entry %d", len(records))
		}
		end := 2 + int(binary.BigEndian.Uint16(data))
		records, data = append(records, data[2:end]), data[end:]
	}
	if len(records) != width {
		return nil, fmt.Errorf("%d entries, not %d", len(records), width)
	}
	return records, nil
}

// tileReader implements tlog.TileReader over the C2SP paths.
type tileReader struct {
	log  *log
	read int
}

// Height implements tlog.TileReader.
func (r *tileReader) Height() int { return tileHeight }

// ReadTiles implements tlog.TileReader.
func (r *tileReader) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	all := make([][]byte, len(tiles))
	for i, tile := range tiles {
		data, err := r.log.get(path(tile))
		if err != nil {
			return nil, err
		}
		if all[i] = data; len(data) != tile.W*tlog.HashSize {
			return nil, fmt.Errorf("%s has %d bytes", path(tile), len(data))
		}
		r.read++
	}
	return all, nil
}

// SaveTiles implements tlog.TileReader.
func (r *tileReader) SaveTiles([]tlog.Tile, [][]byte) {}

// hexHash is a hash in lowercase hex in JSON.
type hexHash tlog.Hash

// UnmarshalJSON implements json.Unmarshaler.
func (h *hexHash) UnmarshalJSON(data []byte) error {
	var text string
	if err := json.Unmarshal(data, &text); err != nil {
		return err
	}
	decoded, err := hex.DecodeString(text)
	if err != nil || len(decoded) != tlog.HashSize || hex.EncodeToString(decoded) != text {
		return fmt.Errorf("not a hash: %q", text)
	}
	copy(h[:], decoded)
	return nil
}

// list returns JSON hashes as sumdb's.
func list(found []hexHash) []tlog.Hash {
	all := make([]tlog.Hash, len(found))
	for i, one := range found {
		all[i] = tlog.Hash(one)
	}
	return all
}
