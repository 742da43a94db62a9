package main

import (
	"encoding/base64"
	"errors"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"
)

// proof is what both proof routes answer: hashes, the root they are for, a signed head, and what ties the two together.
type proof struct {
	Index       int64
	LeafHash    hexHash `json:"leaf_hash"`
	TreeSize    int64   `json:"tree_size"`
	First       int64
	Second      int64
	Root        hexHash
	Hashes      []hexHash
	Checkpoint  string
	Consistency struct {
		First, Second int64
		Hashes        []hexHash
	}
}

// tied checks that the proof is about the tree, and that its signed head extends that tree.
func (l *log) tied(p *proof, tree tlog.Tree) error {
	if tlog.Hash(p.Root) != tree.Hash {
		return fmt.Errorf("root %v, not %v", tlog.Hash(p.Root), tree.Hash)
	}
	signed, err := l.open([]byte(p.Checkpoint))
	if err != nil {
		return fmt.Errorf("its checkpoint: %w", err)
	}
	if p.Consistency.First != tree.N || p.Consistency.Second != signed.N {
		return errors.New("its consistency proof is between other sizes")
	}
	return tlog.CheckTree(list(p.Consistency.Hashes), signed.N, signed.Hash, tree.N, tree.Hash)
}

// checkInclusion asks for the proof of entry n in the tree and checks it.
func (l *log) checkInclusion(tree tlog.Tree, n int64, leaf tlog.Hash) error {
	var p proof
	if err := l.getJSON(fmt.Sprintf("proof/inclusion?index=%d&tree_size=%d", n, tree.N), &p); err != nil {
		return err
	}
	if p.Index != n || p.TreeSize != tree.N || tlog.Hash(p.LeafHash) != leaf {
		return errors.New("it is of another entry or size")
	}
	if err := l.tied(&p, tree); err != nil {
		return err
	}
	return tlog.CheckRecord(list(p.Hashes), tree.N, tree.Hash, n, leaf)
}

// checkConsistency asks for the proof from size n to the tree and checks it against the root recomputed at n.
func (l *log) checkConsistency(tree tlog.Tree, n int64, root tlog.Hash) error {
	var p proof
	if err := l.getJSON(fmt.Sprintf("proof/consistency?first=%d&second=%d", n, tree.N), &p); err != nil {
		return err
	}
	if p.First != n || p.Second != tree.N {
		return errors.New("it is between other sizes")
	}
	if err := l.tied(&p, tree); err != nil {
		return err
	}
	return tlog.CheckTree(list(p.Hashes), tree.N, tree.Hash, n, root)
}

// receipt is the part of muniment/receipt@v1 that proves the leaf.
type receipt struct {
	Typ        string
	Origin     string
	Index      int64
	Leaf       string
	Checkpoint string
	Inclusion  struct {
		TreeSize int64 `json:"tree_size"`
		Hashes   []hexHash
	}
}

// checkReceipt asks for the receipt of entry n and checks it.
func (l *log) checkReceipt(tree tlog.Tree, n int64, leaf tlog.Hash) error {
	var r receipt
	if err := l.getJSON(fmt.Sprintf("entries/%d/receipt?tree_size=%d", n, tree.N), &r); err != nil {
		return err
	}
	signed, err := l.open([]byte(r.Checkpoint))
	if err != nil {
		return fmt.Errorf("its checkpoint: %w", err)
	}
	if r.Typ != "muniment/receipt@v1" || r.Origin != l.origin || r.Index != n || r.Inclusion.TreeSize != signed.N {
		return errors.New("it is of another log, entry or size")
	}
	if signed != tree {
		return fmt.Errorf("it is under the head of size %d, not %d", signed.N, tree.N)
	}
	data, err := base64.StdEncoding.Strict().DecodeString(r.Leaf)
	if err != nil || tlog.RecordHash(data) != leaf {
		return errors.Join(errors.New("its leaf is not the entry"), err)
	}
	return tlog.CheckRecord(list(r.Inclusion.Hashes), signed.N, signed.Hash, n, leaf)
}
