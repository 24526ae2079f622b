package iso

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// key logs in to machines as root.
type key struct {
	signer ssh.Signer
	// file has the public half.
	file string
}

func newKey(t *testing.T) key {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return key{signer, write(t, "key.pub", string(ssh.MarshalAuthorizedKey(signer.PublicKey())))}
}

// run runs a shell line on the machine whose SSH server is at a port of this one, and gives its standard output.
func (k key) run(port, line string) (string, error) { return k.feed(port, line, nil) }

// feed does the same with something on the line's standard input.
func (k key) feed(port, line string, stdin io.Reader) (string, error) {
	conn, err := net.DialTimeout("tcp", "127.0.0.1:"+port, time.Minute)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Minute)); err != nil {
		return "", err
	}
	// The machine made its own key a minute ago, and it is behind a port that only QEMU listens on.
	c, channels, requests, err := ssh.NewClientConn(conn, port, &ssh.ClientConfig{User: "root", Auth: []ssh.AuthMethod{ssh.PublicKeys(k.signer)}, HostKeyCallback: ssh.InsecureIgnoreHostKey()}) //nolint:gosec // see above
	if err != nil {
		return "", fmt.Errorf("log in: %w", err)
	}
	client := ssh.NewClient(c, channels, requests)
	defer client.Close()
	session, err := client.NewSession()
	if err != nil {
		return "", err
	}
	defer session.Close()
	var out, errOut bytes.Buffer
	session.Stdin, session.Stdout, session.Stderr = stdin, &out, &errOut
	if err := session.Run(line); err != nil {
		return "", fmt.Errorf("%s: %w: %s%s", line, err, out.String(), errOut.String())
	}
	return out.String(), nil
}
