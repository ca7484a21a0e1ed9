// Command probe is what tests run in a pod to see what the pod can reach.
//
//	probe serve PORT…     answers "NAME ADDRESS" (its own host name, the caller's address) on each TCP port
//	probe tcp HOST:PORT   exit 0 and the answer if the connection is made, 1 and why not
//	probe lookup NAME     exit 0 and the addresses if the name resolves
package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

const patience = 3 * time.Second

func main() {
	if len(os.Args) < 3 {
		fail(errors.New("usage: probe serve PORT… | tcp HOST:PORT | lookup NAME"))
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
	case "tcp":
		connection, err := net.DialTimeout("tcp", args[0], patience)
		if err != nil {
			fail(err)
		}
		connection.SetDeadline(time.Now().Add(patience))
		answer, _ := io.ReadAll(io.LimitReader(connection, 256))
		fmt.Printf("connected %s\n", answer)
	case "lookup":
		addresses, err := net.LookupHost(args[0])
		if err != nil {
			fail(err)
		}
		fmt.Println(addresses)
	default:
		fail(fmt.Errorf("unknown verb %q", os.Args[1]))
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

// fail tells a refusal from a silence, which a firewall's rules differ in.
func fail(err error) {
	kind := "error"
	var timeout net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.EACCES):
		kind = "refused"
	case errors.As(err, &timeout) && timeout.Timeout():
		kind = "timeout"
	}
	fmt.Println(kind, err)
	os.Exit(1)
}
