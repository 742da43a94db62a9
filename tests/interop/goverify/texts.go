package main

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// openNotes reads notes, each as a JSON text of its base64, and prints for each whether sumdb/note opens it with the keys.
func openNotes(in io.Reader, out io.Writer, vkeys []string) error {
	var verifiers []note.Verifier
	for _, vkey := range vkeys {
		verifier, err := note.NewVerifier(vkey)
		if err != nil {
			return fmt.Errorf("vkey: %w", err)
		}
		verifiers = append(verifiers, verifier)
	}
	keys := note.VerifierList(verifiers...)
	for decoder := json.NewDecoder(in); ; {
		var message []byte
		if err := decoder.Decode(&message); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		opened, err := note.Open(message, keys)
		signers := []string{}
		if err == nil {
			for _, signature := range opened.Sigs {
				signers = append(signers, signature.Name)
			}
		}
		if err := json.NewEncoder(out).Encode(signers); err != nil {
			return err
		}
	}
}

// checkProof reads a C2SP tlog-proof as stock Go does, line by line with a bufio.Scanner, and checks it for the leaf.
// It returns the bytes in the extra line, nil when there is none.
func checkProof(proof io.Reader, leaf []byte, vkey string) ([]byte, error) {
	l, err := newLog("", vkey)
	if err != nil {
		return nil, err
	}
	var head, checkpoint []string
	lines := &head
	scanner := bufio.NewScanner(proof)
	for scanner.Scan() {
		if scanner.Text() == "" && lines == &head {
			lines = &checkpoint
			continue
		}
		*lines = append(*lines, scanner.Text())
	}
	if err := scanner.Err(); err != nil {
		return nil, err
	}
	tree, err := l.open([]byte(strings.Join(checkpoint, "\n") + "\n"))
	if err != nil {
		return nil, err
	}
	if len(head) < 2 || head[0] != "c2sp.org/tlog-proof@v1" {
		return nil, errors.New("not a tlog-proof")
	}
	var extra []byte
	rest := head[1:]
	if text, found := strings.CutPrefix(rest[0], "extra "); found {
		if extra, err = base64.StdEncoding.Strict().DecodeString(text); err != nil {
			return nil, err
		}
		rest = rest[1:]
	}
	index, err := strconv.ParseInt(strings.TrimPrefix(rest[0], "index "), 10, 64)
	if err != nil {
		return nil, err
	}
	var hashes []tlog.Hash
	for _, line := range rest[1:] {
		hash, err := tlog.ParseHash(line)
		if err != nil {
			return nil, err
		}
		hashes = append(hashes, hash)
	}
	return extra, tlog.CheckRecord(hashes, tree.N, tree.Hash, index, tlog.RecordHash(leaf))
}

// proofFile checks the tlog-proof in a file for the leaf in another and prints how long its extra data is, -1 for none.
func proofFile(proof, leaf, vkey string) error {
	file, err := os.Open(proof)
	if err != nil {
		return err
	}
	defer file.Close()
	data, err := os.ReadFile(leaf)
	if err != nil {
		return err
	}
	extra, err := checkProof(file, data, vkey)
	if err != nil {
		return err
	}
	if extra == nil {
		fmt.Println(-1)
		return nil
	}
	fmt.Println(len(extra))
	return nil
}
