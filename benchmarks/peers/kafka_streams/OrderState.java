// The order state of consumers/order_state.py with Kafka Streams: every distinct (updatedAt, status) of an order, newest 64,
// each with the position where it was first seen, in RocksDB with a changelog topic. At least once, as Streams is by default.
// Arguments: bootstrap servers, topic, records, limit in seconds, folder. Prints one line of JSON.

import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Locale;
import java.util.Map;
import java.util.Properties;
import java.util.UUID;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.processor.api.ContextualProcessor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.processor.api.RecordMetadata;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.Stores;

public class OrderState {
  static final int MAX_FACTS = 64, HEADER_BYTES = 10;
  static final Map<String, Integer> RANKS = Map.of("pending", 0, "processing", 0, "out_of_stock", 2, "error", 2,
      "completed", 3, "canceled", 4, "refunded", 5);
  static final AtomicLong applied = new AtomicLong(), startedNs = new AtomicLong(), startedCpuMs = new AtomicLong();
  static final CountDownLatch done = new CountDownLatch(1);

  record Fact(long updatedAt, String status, String topic, int partition, long offset, long receivedAt) {
    boolean same(Fact other) {
      return updatedAt == other.updatedAt && status.equals(other.status);
    }

    boolean countsMoreThan(Fact other) {
      if (updatedAt != other.updatedAt) return updatedAt > other.updatedAt;
      int rank = RANKS.getOrDefault(status, 1), its = RANKS.getOrDefault(other.status, 1);
      return rank != its ? rank > its : status.compareTo(other.status) > 0;
    }

    boolean seenBefore(Fact other) {
      int order = topic.compareTo(other.topic);
      if (order == 0) order = Integer.compare(partition, other.partition);
      if (order == 0) order = Long.compare(offset, other.offset);
      return order < 0;
    }
  }

  static long number(ByteBuffer in) {
    long zigzag = 0;
    int shift = 0;
    byte next;
    do {
      next = in.get();
      zigzag |= (long) (next & 0x7f) << shift;
      shift += 7;
    } while (next < 0);
    return (zigzag >>> 1) ^ -(zigzag & 1);
  }

  static String text(ByteBuffer in) {
    byte[] bytes = new byte[(int) number(in)];
    in.get(bytes);
    return new String(bytes, StandardCharsets.UTF_8);
  }

  static void put(ByteBuffer out, String text) {
    byte[] bytes = text.getBytes(StandardCharsets.UTF_8);
    out.putShort((short) bytes.length).put(bytes);
  }

  static String shortText(ByteBuffer in) {
    byte[] bytes = new byte[in.getShort()];
    in.get(bytes);
    return new String(bytes, StandardCharsets.UTF_8);
  }

  static class Fold extends ContextualProcessor<String, byte[], Void, Void> {
    private final long records, limitNs;
    private final ByteBuffer out = ByteBuffer.allocate(1 << 20);
    private KeyValueStore<String, byte[]> states;

    Fold(long records, long limitNs) {
      this.records = records;
      this.limitNs = limitNs;
    }

    @Override
    public void init(ProcessorContext<Void, Void> context) {
      super.init(context);
      states = context.getStateStore("order-state");
      // The first task is made when the partitions are there, and before anything is processed.
      if (startedNs.compareAndSet(0, System.nanoTime())) startedCpuMs.set(cpuMs());
    }

    @Override
    public void process(Record<String, byte[]> record) {
      ByteBuffer in = ByteBuffer.wrap(record.value());
      in.position(HEADER_BYTES);
      text(in); // eventId
      String store = text(in);
      long receivedAt = number(in);
      String orderId = text(in);
      String externalId = number(in) == 1 ? text(in) : null;
      String status = text(in);
      long updatedAt = number(in);
      RecordMetadata at = context().recordMetadata().orElseThrow();
      Fact fact = new Fact(updatedAt, status, at.topic(), at.partition(), at.offset(), receivedAt);
      String key = store + ":" + orderId;
      byte[] old = states.get(key);
      byte[] changed = fold(old, fact, externalId);
      if (changed != old) states.put(key, changed);
      long seen = applied.incrementAndGet();
      if (seen >= records || (seen % 1000 == 0 && System.nanoTime() - startedNs.get() > limitNs)) done.countDown();
    }

    private byte[] fold(byte[] old, Fact fact, String externalId) {
      Fact[] facts = new Fact[1];
      int count = 0;
      long carriedAt = Long.MIN_VALUE;
      String carried = null;
      if (old != null) {
        ByteBuffer in = ByteBuffer.wrap(old);
        if (in.get() == 1) {
          carriedAt = in.getLong();
          carried = shortText(in);
        }
        count = in.getShort();
        facts = new Fact[count + 1];
        for (int i = 0; i < count; i++)
          facts[i] = new Fact(in.getLong(), shortText(in), shortText(in), in.getInt(), in.getLong(), in.getLong());
      }
      boolean changes = false;
      int place = 0;
      while (place < count && facts[place].countsMoreThan(fact)) place++;
      if (place < count && facts[place].same(fact)) {
        if (fact.seenBefore(facts[place])) {
          facts[place] = fact;
          changes = true;
        }
      } else if (place < MAX_FACTS) {
        System.arraycopy(facts, place, facts, place + 1, count - place);
        facts[place] = fact;
        count = Math.min(count + 1, MAX_FACTS);
        changes = true;
      }
      if (externalId != null && (carried == null || fact.updatedAt > carriedAt
          || (fact.updatedAt == carriedAt && externalId.compareTo(carried) > 0))) {
        carriedAt = fact.updatedAt;
        carried = externalId;
        changes = true;
      }
      if (!changes) return old;
      out.clear();
      out.put((byte) (carried == null ? 0 : 1));
      if (carried != null) {
        out.putLong(carriedAt);
        put(out, carried);
      }
      out.putShort((short) count);
      for (int i = 0; i < count; i++) {
        Fact kept = facts[i];
        out.putLong(kept.updatedAt);
        put(out, kept.status);
        put(out, kept.topic);
        out.putInt(kept.partition).putLong(kept.offset).putLong(kept.receivedAt);
      }
      byte[] state = new byte[out.position()];
      out.flip();
      out.get(state);
      return state;
    }
  }

  static long cpuMs() {
    return ProcessHandle.current().info().totalCpuDuration().orElseThrow().toMillis();
  }

  public static void main(String[] arguments) throws Exception {
    long records = Long.parseLong(arguments[2]), limitNs = Long.parseLong(arguments[3]) * 1_000_000_000L;
    Properties settings = new Properties();
    settings.put("application.id", "bench-" + UUID.randomUUID());
    settings.put("bootstrap.servers", arguments[0]);
    settings.put("auto.offset.reset", "earliest");
    settings.put("state.dir", arguments[4]);
    settings.put("num.stream.threads", "2");
    settings.put("replication.factor", "1");
    settings.put("commit.interval.ms", "5000");
    StreamsBuilder builder = new StreamsBuilder();
    builder.addStateStore(Stores.keyValueStoreBuilder(
        Stores.persistentKeyValueStore("order-state"), Serdes.String(), Serdes.ByteArray()).withCachingEnabled());
    builder.stream(arguments[1], Consumed.with(Serdes.String(), Serdes.ByteArray()))
        .process(() -> new Fold(records, limitNs), "order-state");
    KafkaStreams streams = new KafkaStreams(builder.build(), settings);
    streams.start();
    done.await();
    double seconds = (System.nanoTime() - startedNs.get()) / 1e9;
    long taken = applied.get();
    double cpuUs = (cpuMs() - startedCpuMs.get()) * 1e3 / taken;
    String peak = Files.readString(Path.of("/proc/self/status")).replaceAll("(?s).*VmHWM:\\s*(\\d+) kB.*", "$1");
    System.out.printf(Locale.ROOT, "{\"records\": %d, \"seconds\": %.3f, \"cpu_us_per_record\": %.2f, \"peak_mib\": %.0f}%n",
        taken, seconds, cpuUs, Long.parseLong(peak) / 1024.0);
    Runtime.getRuntime().halt(0);
  }
}
