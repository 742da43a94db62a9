// net/http, with the client that Go programs use.
package main

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"path"
	"strings"
)

func ask(method, url, body string, want int) (string, http.Header) {
	request, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		log.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+os.Args[2])
	if body != "" {
		request.Header.Set("Content-Type", "application/json")
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		log.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != want {
		log.Fatal(answer.Status, " ", string(text), err)
	}
	return string(text), answer.Header
}

func main() {
	url := os.Args[1]
	receipt, header := ask("POST", url+"/entries", os.Args[3], 201)
	index := path.Base(header.Get("Location"))
	entry, _ := ask("GET", url+"/entries/"+index, "", 200)
	proof, _ := ask("GET", url+"/proof/inclusion?index="+index, "", 200)
	fmt.Println(receipt)
	fmt.Println(entry)
	fmt.Println(proof)
}
