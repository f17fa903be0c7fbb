import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import com.fasterxml.jackson.databind.node.ObjectNode;
import io.apicurio.registry.serde.avro.AvroKafkaDeserializer;
import java.io.BufferedWriter;
import java.io.IOException;
import java.io.OutputStreamWriter;
import java.math.BigDecimal;
import java.nio.ByteBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.time.Instant;
import java.util.ArrayList;
import java.util.Base64;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.apache.avro.Conversions;
import org.apache.avro.Schema;
import org.apache.avro.data.TimeConversions;
import org.apache.avro.generic.GenericData;
import org.apache.avro.generic.GenericRecord;
import org.apache.avro.message.BinaryMessageDecoder;
import org.apache.avro.message.SchemaStore;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;

/**
 * A KafkaConsumer, and Apache Avro's decoder of single-object encoding or Apicurio's deserializer. Called as
 * tests/readers/README.md says.
 */
public final class Reader {
    private static final ObjectMapper JSON = new ObjectMapper();
    private static final Duration IDLE = Duration.ofSeconds(30);

    private interface Decode {
        GenericRecord apply(String topic, byte[] value) throws IOException;
    }

    public static void main(String[] arguments) throws Exception {
        // Both decoders ask this instance; without it times are long and money is bytes.
        GenericData.get().addLogicalTypeConversion(new TimeConversions.TimestampMillisConversion());
        GenericData.get().addLogicalTypeConversion(new Conversions.DecimalConversion());
        String bootstrapServers = arguments[0];
        List<String> topics = List.of(arguments).subList(3, arguments.length);
        Decode decode =
                arguments[1].equals("single-object") ? singleObject(Path.of(arguments[2])) : confluent(arguments[2]);

        Map<String, Object> config = Map.of("bootstrap.servers", bootstrapServers, "enable.auto.commit", false);
        try (KafkaConsumer<byte[], byte[]> consumer =
                        new KafkaConsumer<>(config, new ByteArrayDeserializer(), new ByteArrayDeserializer());
                BufferedWriter out =
                        new BufferedWriter(new OutputStreamWriter(System.out, StandardCharsets.UTF_8))) {
            List<TopicPartition> partitions = new ArrayList<>();
            for (String topic : topics) {
                consumer.partitionsFor(topic).forEach(p -> partitions.add(new TopicPartition(topic, p.partition())));
            }
            Map<TopicPartition, Long> ends = new HashMap<>(consumer.endOffsets(partitions));
            ends.values().removeIf(end -> end == 0);
            consumer.assign(ends.keySet());
            consumer.seekToBeginning(ends.keySet());
            while (!ends.isEmpty()) {
                var records = consumer.poll(IDLE);
                if (records.isEmpty()) {
                    throw new IllegalStateException("no record for " + IDLE + ", and there are more in " + ends);
                }
                for (ConsumerRecord<byte[], byte[]> record : records) {
                    out.write(JSON.writeValueAsString(canonical(record, decode)));
                    out.newLine();
                    ends.remove(new TopicPartition(record.topic(), record.partition()), record.offset() + 1);
                }
            }
        }
    }

    /** Every .avsc file under the folder goes into a SchemaStore; Avro finds them by their fingerprints. */
    private static Decode singleObject(Path folder) throws IOException {
        SchemaStore.Cache schemas = new SchemaStore.Cache();
        try (var files = Files.walk(folder)) {
            for (Path file : files.filter(path -> path.toString().endsWith(".avsc")).toList()) {
                schemas.addSchema(new Schema.Parser().parse(file.toFile()));
            }
        }
        return (topic, value) -> {
            Schema writer = schemas.findByFingerprint(ByteBuffer.wrap(value, 2, 8)
                    .order(java.nio.ByteOrder.LITTLE_ENDIAN)
                    .getLong());
            return new BinaryMessageDecoder<GenericRecord>(GenericData.get(), writer, schemas).decode(value);
        };
    }

    /** Apicurio's deserializer knows ids by its registry's own API, which stands beside the Confluent one. */
    private static Decode confluent(String registryUrl) {
        AvroKafkaDeserializer<GenericRecord> deserializer = new AvroKafkaDeserializer<>();
        String url = registryUrl.replace("/apis/ccompat/v7", "/apis/registry/v3");
        deserializer.configure(Map.of("apicurio.registry.url", url), false);
        return deserializer::deserialize;
    }

    private static ObjectNode canonical(ConsumerRecord<byte[], byte[]> record, Decode decode) throws IOException {
        ObjectNode line = JSON.createObjectNode();
        line.put("topic", record.topic());
        line.put("partition", record.partition());
        line.put("offset", record.offset());
        line.put("timestamp", record.timestamp());
        line.put("key", text(record.key()));
        ArrayNode headers = line.putArray("headers");
        for (Header header : record.headers()) {
            headers.addArray().add(header.key()).add(text(header.value()));
        }
        GenericRecord value = decode.apply(record.topic(), record.value());
        line.set("value", canonical(value.getSchema(), value));
        return line;
    }

    private static com.fasterxml.jackson.databind.JsonNode canonical(Schema schema, Object datum) {
        JsonNodeFactory json = JsonNodeFactory.instance;
        if (datum == null) {
            return json.nullNode();
        }
        switch (schema.getType()) {
            case UNION:
                return canonical(schema.getTypes().get(1), datum);
            case RECORD:
                ObjectNode fields = json.objectNode();
                for (Schema.Field field : schema.getFields()) {
                    fields.set(field.name(), canonical(field.schema(), ((GenericRecord) datum).get(field.pos())));
                }
                return fields;
            case ARRAY:
                ArrayNode items = json.arrayNode();
                ((Iterable<?>) datum).forEach(item -> items.add(canonical(schema.getElementType(), item)));
                return items;
            case BOOLEAN:
                return json.booleanNode((Boolean) datum);
            case STRING:
                return json.textNode(datum.toString());
            case BYTES:
                if (datum instanceof BigDecimal) {
                    return json.textNode(((BigDecimal) datum).toPlainString());
                }
                ByteBuffer bytes = ((ByteBuffer) datum).duplicate();
                byte[] copy = new byte[bytes.remaining()];
                bytes.get(copy);
                return json.textNode(Base64.getEncoder().encodeToString(copy));
            case INT:
                return json.textNode(((Integer) datum).toString());
            case LONG:
                return json.textNode(
                        datum instanceof Instant
                                ? Long.toString(((Instant) datum).toEpochMilli())
                                : ((Long) datum).toString());
            default:
                throw new IllegalArgumentException("no canonical form for " + schema);
        }
    }

    /** Unlike new String(bytes, UTF_8), this refuses what is no UTF-8. */
    private static String text(byte[] bytes) throws CharacterCodingException {
        return StandardCharsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(bytes)).toString();
    }
}
