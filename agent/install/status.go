package install

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"shoal/agent/host"
	"shoal/desired"
)

// connectionFile is where a running agent says how it is connected.
const connectionFile = "connection.json"

// Connection is what an agent last knew of its connection.
type Connection struct {
	Host      string `json:"host"`
	Connected bool   `json:"connected"`
	// Server is the one that it is connected to.
	Server string    `json:"server,omitempty"`
	Since  time.Time `json:"since"`
	// Error is why there is no connection.
	Error string `json:"error,omitempty"`
}

// WriteConnection keeps it for Look.
func WriteConnection(data string, c Connection) error {
	b, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return host.WriteFile(filepath.Join(data, connectionFile), append(b, '\n'), 0o600)
}

// Status is how a host is joined, as far as it can be seen without asking anybody.
type Status struct {
	// Joined is false for a host without an identity; Joining says that there is a token.
	Joined  bool `json:"joined"`
	Joining bool `json:"joining,omitempty"`

	Host        string    `json:"host,omitempty"`
	Name        string    `json:"name,omitempty"`
	Fingerprint string    `json:"fingerprint,omitempty"`
	Servers     []string  `json:"servers,omitempty"`
	Expires     time.Time `json:"expires,omitzero"`
	// Agent is the process that works with the identity, 0 for none.
	Agent int `json:"agent,omitempty"`
	// Connection is what that process last said, nil if it has said nothing.
	Connection *Connection `json:"connection,omitempty"`
}

// Look reads the status of a host that joined; given is the identity of one whose credentials were brought, or nil. It
// changes nothing.
func Look(data string, given *Identity) (Status, error) {
	i := given
	if i == nil {
		opened, err := Open(data)
		if errors.Is(err, ErrNotJoined) {
			return notJoined(data)
		}
		if err != nil {
			return Status{}, err
		}
		i = opened
	}
	s := Status{Joined: true, Host: i.Host(), Name: i.Name(), Fingerprint: desired.Fingerprint(i.PublicKey()), Servers: i.URLs()}
	var err error
	if s.Expires, err = i.Expires(); err != nil {
		return Status{}, err
	}
	if s.Agent, err = holder(data); err != nil {
		return Status{}, fmt.Errorf("look for an agent: %w", err)
	}
	if s.Agent == 0 {
		return s, nil
	}
	b, err := readFile(filepath.Join(data, connectionFile))
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return Status{}, fmt.Errorf("read connection: %w", err)
	}
	var c Connection
	// What is of another identity, or can't be read, says nothing.
	if err := json.Unmarshal(b, &c); err == nil && c.Host == s.Host {
		s.Connection = &c
	}
	return s, nil
}

// notJoined is the status of a host without an identity.
func notJoined(data string) (Status, error) {
	var s Status
	if _, err := os.Stat(TokenFile(data)); err == nil {
		s.Joining = true
	}
	if b, err := readFile(filepath.Join(data, identityDir, seedFile)); err == nil {
		if key, public, err := parseSeed(b); err == nil {
			key.Wipe()
			s.Fingerprint = desired.Fingerprint(public)
		}
	}
	var err error
	if s.Agent, err = holder(data); err != nil {
		return Status{}, fmt.Errorf("look for an agent: %w", err)
	}
	return s, nil
}
