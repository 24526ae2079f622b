package identity

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"github.com/nats-io/nkeys"
)

// sealPrefix begins what Seal gives and says which version it is.
const sealPrefix = "sealed1:"

// Seal encrypts to the installation's own key what must stand where others may read it, such as a password's hash in the
// journal. Whoever has the identity can Open it.
func (id *Identity) Seal(plain []byte) (string, error) {
	b, err := id.keys[sealKey].Seal(plain, id.pub[sealKey])
	if err != nil {
		return "", fmt.Errorf("seal: %w", err)
	}
	return sealPrefix + base64.RawStdEncoding.EncodeToString(b), nil
}

// Open decrypts what Seal gave. The error never holds a part of it.
func (id *Identity) Open(sealed string) ([]byte, error) {
	text, ok := strings.CutPrefix(sealed, sealPrefix)
	if !ok || strings.ContainsAny(text, "\r\n") { // which base64 would skip
		return nil, errors.New("open sealed value: it was not sealed by Seal")
	}
	b, err := base64.RawStdEncoding.Strict().DecodeString(text)
	if err != nil {
		return nil, errors.New("open sealed value: it is damaged")
	}
	plain, err := id.keys[sealKey].Open(b, id.pub[sealKey])
	if err != nil {
		return nil, fmt.Errorf("open sealed value: it is damaged, or sealed by another installation: %w", err)
	}
	return plain, nil
}

// SealTo encrypts an answer to a curve key ("X…"), which nkeys' Open decrypts with the key that by says.
func (id *Identity) SealTo(box string, plain []byte) (sealed []byte, by string, err error) {
	// nkeys checks neither the length nor the alphabet before it decodes, and what is sealed to our own key is for Open.
	if len(box) != len(id.pub[sealKey]) || !nkeys.IsValidPublicCurveKey(box) || box == id.pub[sealKey] {
		return nil, "", errors.New("box: is not the curve key of an asker (56 characters, starting with X)")
	}
	b, err := id.keys[sealKey].Seal(plain, box)
	if err != nil {
		return nil, "", fmt.Errorf("seal answer: %w", err)
	}
	return b, id.pub[sealKey], nil
}
