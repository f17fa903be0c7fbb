import java.nio.file.Files;
import java.nio.file.Path;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import org.apache.flink.table.api.EnvironmentSettings;
import org.apache.flink.table.api.TableEnvironment;
import org.apache.flink.types.Row;

/** Runs a file of Flink SQL statements in this process and prints their rows, columns separated by a vertical bar. */
public final class FlinkSql {
    public static void main(String[] arguments) throws Exception {
        TableEnvironment environment =
                TableEnvironment.create(EnvironmentSettings.newInstance().inBatchMode().build());
        environment.getConfig().set("parallelism.default", "1");
        for (String statement : Files.readString(Path.of(arguments[0])).split(";\n")) {
            try (var rows = environment.executeSql(statement).collect()) {
                rows.forEachRemaining(row -> System.out.println(text(row)));
            }
        }
    }

    private static String text(Row row) {
        return IntStream.range(0, row.getArity())
                .mapToObj(column -> String.valueOf(row.getField(column)))
                .collect(Collectors.joining("|"));
    }
}
