package cli

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"shoal/controller/api"
	"shoal/controller/release"
	"shoal/controller/resource"
	"shoal/desired"
)

// releaseCommand is `shoalctl agent release add FILE`: it sends the binary, and then records it.
func (a *App) releaseCommand() *cobra.Command {
	op := a.registry.Find(resource.KindRelease, "create")
	var version, description, request string
	var tags []string
	cmd := &cobra.Command{
		Use: "add FILE...", Short: op.Summary,
		Long: "Send binaries of the agent, one for each architecture, to the controller, which looks into them and signs them. Without --version it is what the " +
			"linker has set in the binary, which can be seen unless it was stripped. Nothing is told to any host: see shoalctl agent rollout start.\n\n" +
			"A release that is there already, with the same content, is taken as said again.",
		Example: "  shoalctl agent release add bin/shoal-agent\n  shoalctl agent release add shoal-agent-amd64 shoal-agent-arm64 --version 1.2.0",
		RunE: func(cmd *cobra.Command, files []string) error {
			if len(files) == 0 {
				return usage(errors.New("FILE must be given: shoalctl agent release add FILE"))
			}
			if request != "" && len(files) > 1 {
				return usage(errors.New("--request: one request adds one release"))
			}
			client, err := a.dial(cmd.Context())
			if err != nil {
				return err
			}
			defer client.Close()
			var answers []json.RawMessage
			for _, file := range files {
				params := map[string]any{"request": first(request, uuid.NewString()), "description": description, "tags": tags, "version": version}
				raw, err := a.addRelease(cmd.Context(), client, op, file, params)
				if err != nil {
					return err
				}
				answers = append(answers, raw)
			}
			return a.print(&call{op: op, params: op.NewParams()}, answers)
		},
	}
	f := cmd.Flags()
	f.StringVar(&version, "version", "", "what the binaries say of themselves with --version")
	f.StringVar(&description, "description", "", "free text, up to 2048 bytes")
	f.StringArrayVar(&tags, "tag", nil, "tag, free text or namespace::key::value (may be repeated)")
	f.StringVar(&request, "request", "", "id of the request: a repetition with the same id is done once")
	return cmd
}

func (a *App) addRelease(ctx context.Context, client *api.Client, op *api.Operation, file string, params map[string]any) (json.RawMessage, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, fmt.Errorf("read the binary: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() == 0 || info.Size() > desired.MaxRelease {
		return nil, usage(fmt.Errorf("%s is no file of 1 to %d bytes", file, desired.MaxRelease))
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the binary: %w", err)
	}
	if params["version"] == "" {
		says := release.VersionOf(bytes.NewReader(data))
		if says == "" {
			return nil, usage(fmt.Errorf("%s does not show which version it is, or is no shoal-agent: give --version, as it prints itself with --version", file))
		}
		params["version"] = says
	}
	sum := sha256.Sum256(data)
	params["sha256"], params["bytes"] = hex.EncodeToString(sum[:]), len(data)
	upload := a.registry.Find(resource.KindRelease, "upload")
	for at := 0; at < len(data); at += api.MaxUploadPart {
		part := api.UploadPart{SHA256: hex.EncodeToString(sum[:]), Offset: at, Data: base64.StdEncoding.EncodeToString(data[at:min(at+api.MaxUploadPart, len(data))])}
		if _, err := a.request(ctx, client, upload, part); err != nil {
			return nil, err
		}
	}
	return a.request(ctx, client, op, params)
}

func (a *App) request(ctx context.Context, client *api.Client, op *api.Operation, params any) (json.RawMessage, error) {
	body, err := json.Marshal(params)
	if err != nil {
		return nil, fmt.Errorf("encode request: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	return client.Call(ctx, op, body)
}
