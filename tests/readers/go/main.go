// franz-go, with hamba/avro for single-object encoding, and franz-go's schema registry client for Confluent's.
// Called as tests/readers/README.md says.
package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/hamba/avro/v2"
	"github.com/hamba/avro/v2/soe"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sr"
)

const idle = 30 * time.Second

// explain takes a record's value apart: the schema it was written with, and the Avro body.
type explain func(value []byte) (avro.Schema, []byte, error)

func main() {
	if err := run(os.Args[1], os.Args[2], os.Args[3], os.Args[4:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(bootstrapServers, wireFormat, where string, topics []string) error {
	ctx := context.Background()
	explain, err := explainer(ctx, wireFormat, where)
	if err != nil {
		return err
	}
	client, err := kgo.NewClient(
		kgo.SeedBrokers(strings.Split(bootstrapServers, ",")...),
		kgo.ConsumeTopics(topics...),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
	)
	if err != nil {
		return err
	}
	defer client.Close()
	ends, err := kadm.NewClient(client).ListEndOffsets(ctx, topics...)
	if err != nil {
		return err
	}
	var left int64 // the topics begin at offset 0
	ends.Each(func(end kadm.ListedOffset) { left += end.Offset })
	out := bufio.NewWriter(os.Stdout)
	for left > 0 {
		waiting, cancel := context.WithTimeout(ctx, idle)
		fetches := client.PollFetches(waiting)
		cancel()
		if errs := fetches.Errors(); len(errs) > 0 {
			return fmt.Errorf("%d records are left: %v", left, errs)
		}
		for _, record := range fetches.Records() {
			line, err := canonicalRecord(record, explain)
			if err != nil {
				return fmt.Errorf("%s/%d/%d: %w", record.Topic, record.Partition, record.Offset, err)
			}
			text, err := json.Marshal(line)
			if err != nil {
				return err
			}
			out.Write(append(text, '\n'))
			left--
		}
	}
	return out.Flush()
}

func explainer(ctx context.Context, wireFormat, where string) (explain, error) {
	if wireFormat == "single-object" {
		schemas, err := schemasByFingerprint(where)
		return func(value []byte) (avro.Schema, []byte, error) {
			fingerprint, body, err := soe.ParseHeader(value)
			if err != nil {
				return nil, nil, err
			}
			schema := schemas[string(fingerprint)]
			if schema == nil {
				return nil, nil, fmt.Errorf("no schema has the fingerprint %x", fingerprint)
			}
			return schema, body, nil
		}, err
	}
	registry, err := sr.NewClient(sr.URLs(where))
	schemas := map[int]avro.Schema{}
	var header sr.ConfluentHeader
	return func(value []byte) (avro.Schema, []byte, error) {
		id, body, err := header.DecodeID(value)
		if err != nil {
			return nil, nil, err
		}
		if schemas[id] == nil {
			found, err := registry.SchemaByID(ctx, id)
			if err != nil {
				return nil, nil, err
			}
			// A cache of its own: all versions of a record have the same name.
			if schemas[id], err = avro.ParseWithCache(found.Schema, "", &avro.SchemaCache{}); err != nil {
				return nil, nil, err
			}
		}
		return schemas[id], body, nil
	}, err
}

// schemasByFingerprint returns every .avsc file under the folder, by the eight bytes that follow C3 01.
func schemasByFingerprint(folder string) (map[string]avro.Schema, error) {
	schemas := map[string]avro.Schema{}
	return schemas, filepath.WalkDir(folder, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".avsc" {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		// A cache of its own: all versions of a record have the same name.
		schema, err := avro.ParseBytesWithCache(text, "", &avro.SchemaCache{})
		if err != nil {
			return err
		}
		fingerprint, err := fingerprint(text)
		schemas[string(fingerprint)] = schema
		return err
	})
}

// fingerprint returns the eight bytes of single-object encoding. hamba/avro 2.31.0 keeps logical types in the canonical
// form, where the specification drops them, so they are taken out first.
func fingerprint(text []byte) ([]byte, error) {
	var parsed any
	if err := json.Unmarshal(text, &parsed); err != nil {
		return nil, err
	}
	bare, err := json.Marshal(withoutLogicalTypes(parsed))
	if err != nil {
		return nil, err
	}
	schema, err := avro.ParseBytesWithCache(bare, "", &avro.SchemaCache{})
	if err != nil {
		return nil, err
	}
	return soe.ComputeFingerprint(schema)
}

func withoutLogicalTypes(schema any) any {
	switch part := schema.(type) {
	case map[string]any:
		delete(part, "logicalType")
		for key := range part {
			part[key] = withoutLogicalTypes(part[key])
		}
	case []any:
		for i := range part {
			part[i] = withoutLogicalTypes(part[i])
		}
	}
	return schema
}

type line struct {
	Topic     string      `json:"topic"`
	Partition int32       `json:"partition"`
	Offset    int64       `json:"offset"`
	Timestamp int64       `json:"timestamp"`
	Key       string      `json:"key"`
	Headers   [][2]string `json:"headers"`
	Value     any         `json:"value"`
}

func canonicalRecord(record *kgo.Record, explain explain) (*line, error) {
	schema, body, err := explain(record.Value)
	if err != nil {
		return nil, err
	}
	var value any
	if err := avro.Unmarshal(schema, body, &value); err != nil {
		return nil, err
	}
	canonicalValue, err := canonical(schema, value)
	if err != nil {
		return nil, err
	}
	headers := [][2]string{}
	for _, header := range record.Headers {
		headers = append(headers, [2]string{header.Key, string(header.Value)})
	}
	if !utf8.Valid(record.Key) {
		return nil, fmt.Errorf("the key is not UTF-8: %q", record.Key)
	}
	return &line{
		Topic:     record.Topic,
		Partition: record.Partition,
		Offset:    record.Offset,
		Timestamp: record.Timestamp.UnixMilli(),
		Key:       string(record.Key),
		Headers:   headers,
		Value:     canonicalValue,
	}, nil
}

func canonical(schema avro.Schema, datum any) (any, error) {
	switch value := datum.(type) {
	case nil, bool, string:
		return value, nil
	case int:
		return strconv.Itoa(value), nil
	case int64:
		return strconv.FormatInt(value, 10), nil
	case time.Time:
		return strconv.FormatInt(value.UnixMilli(), 10), nil
	case *big.Rat:
		return value.FloatString(6), nil
	case []byte:
		return base64.StdEncoding.EncodeToString(value), nil
	case []any:
		items := make([]any, len(value))
		for i := range value {
			item, err := canonical(schema.(*avro.ArraySchema).Items(), value[i])
			if err != nil {
				return nil, err
			}
			items[i] = item
		}
		return items, nil
	case map[string]any:
		if union, ok := schema.(*avro.UnionSchema); ok { // hamba/avro calls the branch by its name, if it is an array
			branch := union.Types()[1]
			return canonical(branch, value[string(branch.Type())])
		}
		fields := map[string]any{}
		for _, field := range schema.(*avro.RecordSchema).Fields() {
			content, err := canonical(field.Type(), value[field.Name()])
			if err != nil {
				return nil, err
			}
			fields[field.Name()] = content
		}
		return fields, nil
	default:
		return nil, fmt.Errorf("no canonical form for %T", datum)
	}
}
