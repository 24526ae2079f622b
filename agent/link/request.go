package link

import (
	"context"
	"encoding/json"
	"fmt"
)

// URLs asks where the content of an image can be fetched from. The addresses are signed and good for a short while.
func (l *Link) URLs(ctx context.Context, image string) ([]string, error) {
	req, err := json.Marshal(map[string]string{"image": image})
	if err != nil {
		return nil, err
	}
	b, err := l.request(ctx, "image-url", req)
	if err != nil {
		return nil, err
	}
	var answer struct {
		URLs []string `json:"urls"`
	}
	if err := json.Unmarshal(b, &answer); err != nil {
		return nil, fmt.Errorf("read the addresses of image %s: %w", image, err)
	}
	if len(answer.URLs) == 0 {
		return nil, fmt.Errorf("read the addresses of image %s: the controller knows none", image)
	}
	return answer.URLs, nil
}
