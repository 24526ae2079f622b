package controller

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"shoal/controller/identity"
	"shoal/subjects"
)

// MakeCreds writes a credentials file for a person or program: role admin or viewer, with a ttl of 0 for ever. It needs no
// running controller.
func MakeCreds(identityDir, role, name string, ttl time.Duration, path string) error {
	if role != string(identity.RoleAdmin) && role != string(identity.RoleViewer) {
		return fmt.Errorf("role: %q is neither admin nor viewer", role)
	}
	if !subjects.ValidToken(name) {
		return fmt.Errorf("name: %q is not 1 to 64 characters of A-Z, a-z, 0-9, _ and -", name)
	}
	if _, err := os.Stat(identityDir); err != nil {
		return fmt.Errorf("identity: %w", err)
	}
	if _, err := os.Stat(path); err == nil {
		return fmt.Errorf("out: %s is there already", path)
	}
	id, err := identity.Open(identityDir)
	if err != nil {
		return err
	}
	creds, err := id.Creds(identity.Role(role), name, ttl)
	if err != nil {
		return err
	}
	return creds.WriteFile(path)
}

// NATSConfig is the text of a nats-server.conf for an external server that serves this installation; the identity is made
// if it is not there yet.
func NATSConfig(identityDir, listen, dir string) (string, error) {
	if _, _, err := net.SplitHostPort(listen); err != nil {
		return "", fmt.Errorf("listen: %w", err)
	}
	if dir == "" {
		return "", errors.New("store: the server's directory must be given")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("store: %w", err)
	}
	id, err := identity.Open(identityDir)
	if err != nil {
		return "", err
	}
	text, err := id.ServerConfig(dir)
	if err != nil {
		return "", err
	}
	const standard = `listen: "0.0.0.0:4222"`
	if !strings.Contains(text, standard) {
		return "", errors.New("make configuration: it has no listen line")
	}
	return strings.Replace(text, standard, fmt.Sprintf("listen: %q", listen), 1), nil
}
