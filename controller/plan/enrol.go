package plan

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"shoal/controller/resource"
	"shoal/desired"
)

// TokenKept is how long a token that has run out is still shown.
const TokenKept = 24 * time.Hour

// SecretHash is what is kept of a token's secret. The secret is random and long, so that a plain hash will do.
func SecretHash(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// newToken checks a join token that is being made.
func newToken(tx resource.Tx, t *resource.HostToken) error {
	if t.Uses == 0 {
		t.Uses = 1
	}
	if t.Approval == "" {
		t.Approval = resource.ApproveAuto
	}
	t.Keys = nil
	if t.ReplaceID == "" {
		return nil
	}
	h, err := resource.Get[*resource.Host](tx, t.ReplaceID)
	if err != nil {
		return inThe(err, "replace")
	}
	if h.ClusterID != t.ClusterID {
		return resource.Conflict("replace", "host %s is in another cluster", h.Name)
	}
	return nil
}

// refusedToken is one answer for every token that is not good, so that guessing teaches nothing.
func refusedToken() *resource.Error {
	return &resource.Error{
		Code: resource.CodeForbidden, Field: "token", Message: "the token is not known here, has run out, or was for other hosts",
		Remedy: "make a new one: shoalctl host token create",
	}
}

// Enrol is what a machine that asks to be let in gets: the host that it is, or the request that waits for an administrator. A
// repetition by the same key gives the same; a key that is a host already needs no token any more.
func Enrol(tx resource.Tx, req desired.EnrolRequest, from string) (*resource.Host, *resource.Enrolment, error) {
	if h, ok := tx.Holder(HostKey(req.PublicKey)).(*resource.Host); ok {
		return h, nil, nil
	}
	if e, ok := tx.Holder(resource.EnrolmentKey(req.PublicKey)).(*resource.Enrolment); ok {
		if e.State == resource.EnrolmentRejected {
			return nil, nil, &resource.Error{
				Code: resource.CodeForbidden, Message: "an administrator has rejected this machine: " + e.Reason, Remedy: "ask why; then join again with a new key (--force)",
			}
		}
		return nil, e, nil
	}
	t, ok := resource.Find[*resource.HostToken](tx, req.Token)
	if !ok || subtle.ConstantTimeCompare([]byte(t.SecretHash), []byte(SecretHash(req.Secret))) != 1 {
		return nil, nil, refusedToken()
	}
	cluster, err := resource.Get[*resource.Cluster](tx, t.ClusterID)
	if err != nil {
		return nil, nil, err
	}
	switch {
	case !t.Expires.After(tx.Now()):
		return nil, nil, refusedToken()
	case len(t.Keys) >= t.Uses:
		return nil, nil, refusedToken()
	case req.Cluster != "" && req.Cluster != cluster.ID && req.Cluster != cluster.Name:
		return nil, nil, resource.Conflict("cluster", "the token is for cluster %s", cluster.Name).WithRemedy("use a token for cluster %s", req.Cluster)
	}
	name := strings.TrimSpace(req.Name)
	if err := resource.CheckName("name", name); err != nil {
		return nil, nil, err
	}
	t = resource.Copy(t)
	t.Keys = append(slices.Clone(t.Keys), req.PublicKey)
	if err := tx.Put(t); err != nil {
		return nil, nil, err
	}
	if t.Approval == resource.ApproveAuto {
		h, err := admit(tx, t.ClusterID, t.ReplaceID, name, req.PublicKey)
		return h, nil, err
	}
	e := &resource.Enrolment{
		State: resource.EnrolmentPending, TokenID: t.ID, ClusterID: t.ClusterID, PublicKey: req.PublicKey, Fingerprint: desired.Fingerprint(req.PublicKey),
		From: from, Version: clip(req.Version), Machine: trim(req.Machine),
	}
	e.ID, e.Name, e.Owner = tx.NewID(), name, resource.AdminAccount
	if err := tx.Put(e); err != nil {
		return nil, nil, err
	}
	e, err = resource.Get[*resource.Enrolment](tx, e.ID)
	return nil, e, err
}

// trim bounds what a machine says of itself, which anybody may have made up.
func trim(m desired.MachineFacts) desired.MachineFacts {
	for _, s := range []*string{&m.Hostname, &m.Vendor, &m.Product, &m.Serial, &m.UUID, &m.Arch} {
		*s = clip(strings.ToValidUTF8(*s, "?"))
	}
	list := func(in []string) []string {
		var out []string
		for _, s := range in[:min(len(in), 32)] {
			out = append(out, clip(strings.ToValidUTF8(s, "?")))
		}
		return out
	}
	m.MACs, m.Addresses = list(m.MACs), list(m.Addresses)
	return m
}

// HostKey is the unique key of a host's public key.
func HostKey(publicKey string) string { return "host/key/" + publicKey }

// admit makes a host of a machine, or gives it the record of the host that it replaces.
func admit(tx resource.Tx, clusterID, replaceID, name, publicKey string) (*resource.Host, error) {
	if replaceID != "" {
		old, err := resource.Get[*resource.Host](tx, replaceID)
		if err != nil {
			return nil, inThe(err, "replace")
		}
		if old.ClusterID != clusterID {
			return nil, resource.Conflict("replace", "host %s is in another cluster", old.Name)
		}
		return RekeyHost(tx, old.ID, publicKey)
	}
	if h := tx.Holder("host/name/" + name); h != nil {
		return nil, resource.Conflict("name", "there is a host %s already", name).
			WithRemedy("if this is the same machine, installed anew, have it come back under its old record: shoalctl host token create --replace %s; else give it another name: shoal-agent join --name", name)
	}
	h := &resource.Host{ClusterID: clusterID, State: resource.Enabled, PublicKey: publicKey}
	h.ID, h.Name, h.Owner = tx.NewID(), name, resource.AdminAccount
	if err := tx.Put(h); err != nil {
		return nil, err
	}
	return resource.Get[*resource.Host](tx, h.ID)
}

// ApproveEnrolment lets a machine in that waits, under another name if one is given, or in place of a host.
func ApproveEnrolment(tx resource.Tx, id, name, replaceID string) (*resource.Host, error) {
	e, err := resource.Get[*resource.Enrolment](tx, id)
	if err != nil {
		return nil, err
	}
	if name == "" {
		name = e.Name
	}
	if err := tx.Delete(resource.KindEnrolment, id); err != nil {
		return nil, err
	}
	return admit(tx, e.ClusterID, replaceID, name, e.PublicKey)
}

// RejectEnrolment turns a machine away. Its key can't ask again while the record is kept.
func RejectEnrolment(tx resource.Tx, id, reason string) (*resource.Enrolment, error) {
	e, err := resource.Get[*resource.Enrolment](tx, id)
	if err != nil {
		return nil, err
	}
	e = resource.Copy(e)
	e.State, e.Reason = resource.EnrolmentRejected, clip(reason)
	if e.Reason == "" {
		e.Reason = fmt.Sprintf("no reason was given by %s", tx.Request().Caller)
	}
	if err := tx.Put(e); err != nil {
		return nil, err
	}
	return resource.Get[*resource.Enrolment](tx, id)
}
