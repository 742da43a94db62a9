// Command goverify checks a whole transparency log over HTTP with golang.org/x/mod/sumdb/{note,tlog} and nothing of Muniment's.
//
// It trusts one verifier key. Everything the log serves must agree with the entries it serves:
//
//  1. the checkpoint opens with the key;
//  2. the entry bundles hash to its root, recomputed here leaf by leaf;
//  3. every hash in every tile is the one recomputed from the entries;
//  4. every published checkpoint opens, and is the root of the entries up to its size, also through the tiles of that size;
//  5. every inclusion proof, every consistency proof to the latest size and every receipt checks.
//
// With -notes or -proof it reads what it is given instead, and asks no server.
//
// It prints what it counted as one line of JSON, or fails with exit code 1 and the reason.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

// counts is what a run checked: a verifier that looked at nothing accepts everything.
type counts struct {
	Size         int64 `json:"size"`
	Entries      int64 `json:"entries"`
	Tiles        int   `json:"tiles"`
	Checkpoints  int   `json:"checkpoints"`
	RecordProofs int64 `json:"record_proofs"`
	TreeProofs   int64 `json:"tree_proofs"`
	Receipts     int64 `json:"receipts"`
}

func main() {
	url := flag.String("url", "", "where the log is served, without a slash at the end")
	vkey := flag.String("vkey", "", "the log's verifier key")
	notes := flag.Bool("notes", false, "instead: open the notes on stdin; -vkey is then any number of keys with spaces between")
	proof := flag.String("proof", "", "instead: check the tlog-proof in this file")
	leaf := flag.String("leaf", "", "the file with the leaf that -proof is for")
	flag.Parse()
	if *notes {
		exit(openNotes(os.Stdin, os.Stdout, strings.Fields(*vkey)))
	}
	if *proof != "" {
		exit(proofFile(*proof, *leaf, *vkey))
	}
	counted, err := verify(*url, *vkey)
	if err != nil {
		exit(err)
	}
	if err := json.NewEncoder(os.Stdout).Encode(counted); err != nil {
		os.Exit(1)
	}
}

// exit ends the program, with code 1 and the reason when there is one.
func exit(err error) {
	if err == nil {
		os.Exit(0)
	}
	fmt.Fprintln(os.Stderr, "goverify:", err)
	os.Exit(1)
}

// verify runs all steps, in the order of the package comment.
func verify(url, vkey string) (c counts, err error) {
	l, err := newLog(url, vkey)
	if err != nil {
		return c, err
	}
	tree, err := l.latest()
	if err != nil {
		return c, fmt.Errorf("checkpoint: %w", err)
	}
	c.Size = tree.N
	own, err := recompute(l, tree, &c)
	if err != nil {
		return c, err
	}
	if err := checkTiles(l, tree, own, &c); err != nil {
		return c, err
	}
	if err := checkPublished(l, own, &c); err != nil {
		return c, err
	}
	return c, checkProofs(l, tree, own, &c)
}

// recompute hashes all entries and compares the root with the signed one. It returns the hashes of the whole tree.
func recompute(l *log, tree tlog.Tree, c *counts) (hashes, error) {
	var own hashes
	for n := int64(0); n*tileWidth < tree.N; n++ {
		records, err := l.bundle(n, int(min(tileWidth, tree.N-n*tileWidth)))
		if err != nil {
			return nil, fmt.Errorf("bundle %d: %w", n, err)
		}
		for _, record := range records {
			stored, err := tlog.StoredHashes(c.Entries, record, own)
			if err != nil {
				return nil, err
			}
			own = append(own, stored...)
			c.Entries++
		}
	}
	if root, err := tlog.TreeHash(tree.N, own); err != nil || root != tree.Hash {
		return nil, fmt.Errorf("entries: their root is %v, the checkpoint says %v (%v)", root, tree.Hash, err)
	}
	return own, nil
}

// checkTiles compares every hash in the tiles of the tree with the recomputed ones.
func checkTiles(l *log, tree tlog.Tree, own hashes, c *counts) error {
	reader := &tileReader{log: l}
	all := make([]int64, tlog.StoredHashCount(tree.N))
	for i := range all {
		all[i] = int64(i)
	}
	found, err := tlog.TileHashReader(tree, reader).ReadHashes(all)
	if err != nil {
		return fmt.Errorf("tiles: %w", err)
	}
	for i := range found {
		if found[i] != own[i] {
			return fmt.Errorf("tiles: stored hash %d is %v, recomputed %v", i, found[i], own[i])
		}
	}
	c.Tiles = reader.read
	return nil
}

// checkPublished opens every published checkpoint and compares it with the recomputed tree and with the tiles of its size.
func checkPublished(l *log, own hashes, c *counts) error {
	trees, err := l.published()
	if err != nil {
		return fmt.Errorf("published checkpoints: %w", err)
	}
	for _, tree := range trees {
		if root, err := tlog.TreeHash(tree.N, own); err != nil || root != tree.Hash {
			return fmt.Errorf("published checkpoint of size %d: root %v, recomputed %v (%v)", tree.N, tree.Hash, root, err)
		}
		reader := tlog.TileHashReader(tree, &tileReader{log: l})
		if _, err := reader.ReadHashes([]int64{tlog.StoredHashIndex(0, tree.N-1)}); err != nil {
			return fmt.Errorf("tiles of published size %d: %w", tree.N, err)
		}
		c.Checkpoints++
	}
	return nil
}

// checkProofs asks for a proof of every entry and of every earlier size, and for every receipt.
func checkProofs(l *log, tree tlog.Tree, own hashes, c *counts) error {
	for n := int64(0); n < tree.N; n++ {
		leaf := own[tlog.StoredHashIndex(0, n)]
		if err := l.checkInclusion(tree, n, leaf); err != nil {
			return fmt.Errorf("inclusion proof of %d: %w", n, err)
		}
		c.RecordProofs++
		if err := l.checkReceipt(tree, n, leaf); err != nil {
			return fmt.Errorf("receipt of %d: %w", n, err)
		}
		c.Receipts++
		root, err := tlog.TreeHash(n+1, own)
		if err != nil {
			return err
		}
		if err := l.checkConsistency(tree, n+1, root); err != nil {
			return fmt.Errorf("consistency proof from %d: %w", n+1, err)
		}
		c.TreeProofs++
	}
	return nil
}
