package cli_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
	"github.com/rogpeppe/go-internal/testscript"

	"shoal/controller/resource"
	"shoal/desired"
	"shoal/subjects"
)

// machine is the key of a machine of a script, made when it is first named.
func machine(ts *testscript.TestScript, name string) nkeys.KeyPair {
	all := ts.Value("machines").(map[string]nkeys.KeyPair)
	if all[name] == nil {
		key, err := nkeys.CreateUser()
		ts.Check(err)
		all[name] = key
	}
	return all[name]
}

// guest makes a request without credentials, as an agent does.
func guest(ts *testscript.TestScript, verb string, request func(box string) any, into any) error {
	r := ts.Value("controller").(*running)
	conn, err := nats.Connect(r.url, nats.RootCAs(r.ca()), nats.CustomInboxPrefix(subjects.Inbox(subjects.GuestName)))
	ts.Check(err)
	defer conn.Close()
	box, err := nkeys.CreateCurveKeys()
	ts.Check(err)
	public, err := box.PublicKey()
	ts.Check(err)
	body, err := json.Marshal(request(public))
	ts.Check(err)
	m, err := conn.Request(subjects.Guest(verb), body, 10*time.Second)
	ts.Check(err)
	plain, err := box.Open(m.Data, m.Header.Get(desired.SealedBy))
	if err != nil {
		ts.Fatalf("the answer is not sealed to whom asked: %v (%q)", err, m.Data)
	}
	if m.Header.Get("Nats-Service-Error-Code") != "" {
		e := &resource.Error{}
		ts.Check(json.Unmarshal(plain, e))
		return fmt.Errorf("%w; %s", e, e.Remedy)
	}
	ts.Check(json.Unmarshal(plain, into))
	return nil
}

// enrolCmd is "enrol TOKENFILE NAME [MACHINE] [--cluster CLUSTER]": what shoal-agent join asks.
func enrolCmd(ts *testscript.TestScript, neg bool, args []string) {
	token, err := desired.ParseJoinToken(ts.ReadFile(args[0]))
	ts.Check(err)
	who, cluster := "first", ""
	if len(args) > 2 {
		who = args[2]
	}
	if len(args) > 4 {
		cluster = args[4]
	}
	public, err := machine(ts, who).PublicKey()
	ts.Check(err)
	var reply desired.EnrolReply
	err = guest(ts, subjects.GuestEnrol, func(box string) any {
		return desired.EnrolRequest{Token: token.ID, Secret: token.Secret, PublicKey: public, Name: args[1], Cluster: cluster, Box: box}
	}, &reply)
	outcome(ts, neg, err, func() string {
		if reply.State != desired.EnrolApproved {
			return string(reply.State)
		}
		c := reply.Credentials
		if !strings.Contains(c.CA, "BEGIN CERTIFICATE") || len(c.URLs) == 0 || c.JWT == "" {
			ts.Fatalf("the credentials lack something: %+v", c)
		}
		return fmt.Sprintf("%s %s %s", reply.State, c.Host, c.Name)
	})
}

// renewCmd is "renew TOKENFILE MACHINE": what an agent asks whose credentials have expired. Its host is found by its key.
func renewCmd(ts *testscript.TestScript, neg bool, args []string) {
	key := machine(ts, args[1])
	public, err := key.PublicKey()
	ts.Check(err)
	var c desired.Credentials
	var reply desired.EnrolReply
	token, err := desired.ParseJoinToken(ts.ReadFile(args[0]))
	ts.Check(err)
	// Enrolling again tells the host's id, while it is one.
	host := "6f1c2b3a-0000-4000-8000-000000000000"
	if guest(ts, subjects.GuestEnrol, func(box string) any {
		return desired.EnrolRequest{Token: token.ID, Secret: token.Secret, PublicKey: public, Name: "again", Box: box}
	}, &reply) == nil && reply.Credentials != nil {
		host = reply.Credentials.Host
	}
	for _, wrong := range []bool{true, false} {
		err = guest(ts, subjects.GuestRenew, func(box string) any {
			proof := desired.RenewProof(host, box)
			if wrong {
				proof = desired.RenewProof(host, "another box")
			}
			sig, err := key.Sign(proof)
			ts.Check(err)
			return desired.RenewRequest{Host: host, PublicKey: public, Signature: base64.StdEncoding.EncodeToString(sig), Box: box}
		}, &c)
		if wrong && err == nil {
			ts.Fatalf("a signature of something else was accepted")
		}
	}
	outcome(ts, neg, err, func() string { return "expires " + c.Expires.Format(time.RFC3339) })
}

func outcome(ts *testscript.TestScript, neg bool, err error, text func() string) {
	switch {
	case err != nil && !neg:
		ts.Fatalf("%v", err)
	case err != nil:
		fmt.Fprintln(ts.Stderr(), err)
	case neg:
		ts.Fatalf("it was granted: %s", text())
	default:
		fmt.Fprintln(ts.Stdout(), text())
	}
}

// noSecretCmd is "nosecret FILE...": the secret in each file, a password or the secret part of a join token, must be nowhere in what
// the controller keeps.
func noSecretCmd(ts *testscript.TestScript, _ bool, args []string) {
	r := ts.Value("controller").(*running)
	secrets := map[string]string{}
	for _, file := range args {
		text := strings.TrimSpace(ts.ReadFile(file))
		if token, err := desired.ParseJoinToken(text); err == nil {
			text = token.Secret
		}
		secrets[file] = text
	}
	files := 0
	err := filepath.WalkDir(r.data, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		files++
		for file, secret := range secrets {
			if bytes.Contains(b, []byte(secret)) {
				ts.Fatalf("%s holds the secret of %s", path, file)
			}
		}
		return err
	})
	ts.Check(err)
	if files < 20 {
		ts.Fatalf("only %d files were looked at", files)
	}
}
