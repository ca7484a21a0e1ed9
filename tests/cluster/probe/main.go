// Command probe is what tests run in a pod to see what the pod can reach.
//
//	probe serve PORT…    answers each TCP connection with its own host name and the caller's address
//	probe reach TARGET…  tries tcp=HOST:PORT and lookup=NAME, all at once, and prints a line for each:
//	                     "TARGET connected …", "TARGET refused …", "TARGET timeout …" or "TARGET error …"
package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"
)

const patience = 3 * time.Second

func main() {
	if len(os.Args) < 3 {
		fail("usage: probe serve PORT… | reach (tcp=HOST:PORT|lookup=NAME)…")
	}
	switch args := os.Args[2:]; os.Args[1] {
	case "serve":
		for _, port := range args {
			listener, err := net.Listen("tcp", ":"+port)
			if err != nil {
				fail(err)
			}
			go serve(listener)
		}
		select {}
	case "reach":
		results := make(chan string)
		for _, target := range args {
			go func() { results <- target + " " + reach(target) }()
		}
		for range args {
			fmt.Println(<-results)
		}
	default:
		fail("unknown verb " + os.Args[1])
	}
}

func serve(listener net.Listener) {
	name, _ := os.Hostname()
	for {
		connection, err := listener.Accept()
		if err != nil {
			fail(err)
		}
		fmt.Fprintf(connection, "%s %s", name, connection.RemoteAddr())
		connection.Close()
	}
}

func reach(target string) string {
	verb, argument, _ := strings.Cut(target, "=")
	switch verb {
	case "tcp":
		connection, err := net.DialTimeout("tcp", argument, patience)
		if err != nil {
			return outcome(err)
		}
		defer connection.Close()
		connection.SetDeadline(time.Now().Add(patience / 3))
		answer, _ := io.ReadAll(io.LimitReader(connection, 256))
		return fmt.Sprintf("connected %q", answer)
	case "lookup":
		addresses, err := net.LookupHost(argument)
		if err != nil {
			return outcome(err)
		}
		return fmt.Sprint("connected ", addresses)
	}
	return "error: unknown verb"
}

// A firewall's rules differ in whether they refuse or keep silent, and so do these words.
func outcome(err error) string {
	kind := "error"
	var timeout net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.EACCES):
		kind = "refused"
	case errors.As(err, &timeout) && timeout.Timeout():
		kind = "timeout"
	}
	return fmt.Sprint(kind, " ", err)
}

func fail(problem any) {
	fmt.Fprintln(os.Stderr, problem)
	os.Exit(1)
}
