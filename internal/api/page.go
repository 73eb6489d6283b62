package api

import (
	"crypto/sha256"
	"encoding/hex"
	"io/fs"
	"path"
	"regexp"
	"strings"

	"github.com/deepmed/anomaly/web"
	"github.com/gofiber/fiber/v2"
)

const (
	pathPage = "/"
	// pathPageFiles is the folder of the files that the page refers to. Their URLs are
	// relative to the page, so that a proxy may serve it under another path.
	pathPageFiles = "/page/"
)

// pagePolicy is the Content-Security-Policy of the page: its own files only, nothing
// inline, and no frame around it. Images that a person chooses and heatmaps are blob URLs,
// which the report reads again.
const pagePolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self' blob:; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// pageTypes are the media types of the files, which must not depend on the tables of the
// machine.
var pageTypes = map[string]string{
	".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8",
	".svg": "image/svg+xml", ".txt": "text/plain; charset=utf-8",
}

// hashedName matches the names of files that have a hash of their content.
var hashedName = regexp.MustCompile(`-[A-Z0-9]{8}\.(js|css)$`)

var errNoPageFile = &problem{fiber.StatusNotFound, "The page has no such file: reload it"}

// pageFile is a file of the page in memory, with its headers.
type pageFile struct {
	content                []byte
	etag, mediaType, cache string
}

// routePage serves the page at / and its files below /page/. They are the same for
// everyone, and nothing in them is secret: they need no token.
func (s *Server) routePage() error {
	files := map[string]pageFile{}
	err := fs.WalkDir(web.Files(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := fs.ReadFile(web.Files(), name)
		if err != nil {
			return err
		}
		sum := sha256.Sum256(content)
		f := pageFile{content: content, etag: `"` + hex.EncodeToString(sum[:16]) + `"`, mediaType: pageTypes[path.Ext(name)], cache: "no-cache"}
		if hashedName.MatchString(name) {
			f.cache = "public, max-age=31536000, immutable"
		}
		files[name] = f
		return nil
	})
	if err != nil {
		return err
	}
	s.app.Get(pathPage, func(c *fiber.Ctx) error { return files[web.Index].send(c) })
	s.app.Get(pathPageFiles+":file", func(c *fiber.Ctx) error {
		f, ok := files[c.Params("file")]
		if !ok {
			return errNoPageFile
		}
		return f.send(c)
	})
	return nil
}

// send answers with the file, or with 304 if the client has it.
func (f pageFile) send(c *fiber.Ctx) error {
	c.Set(fiber.HeaderContentSecurityPolicy, pagePolicy)
	c.Set(fiber.HeaderCacheControl, f.cache)
	c.Set(fiber.HeaderETag, f.etag)
	for tag := range strings.SplitSeq(c.Get(fiber.HeaderIfNoneMatch), ",") {
		if tag = strings.TrimPrefix(strings.TrimSpace(tag), "W/"); tag == f.etag || tag == "*" {
			return c.SendStatus(fiber.StatusNotModified)
		}
	}
	c.Set(fiber.HeaderContentType, f.mediaType)
	return c.Send(f.content)
}
