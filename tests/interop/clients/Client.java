// The stock client of the JDK, with all its defaults: it offers HTTP/2 with the first request of a connection.
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;

class Client {
    static final HttpClient HTTP = HttpClient.newHttpClient();
    static String url;
    static String key;

    public static void main(String[] words) throws Exception {
        url = words[0];
        key = "Bearer " + words[1];
        HttpRequest post = to("/entries").header("Content-Type", "application/json")
            .POST(HttpRequest.BodyPublishers.ofString(words[2])).build();
        var logged = HTTP.send(post, BodyHandlers.ofString());
        if (logged.statusCode() != 201) throw new AssertionError(logged.statusCode() + " " + logged.body());
        System.out.println(logged.body());
        String index = logged.headers().firstValue("location").get().replaceAll(".*/", "");
        System.out.println(get("/entries/" + index));
        System.out.println(get("/proof/inclusion?index=" + index));
    }

    static HttpRequest.Builder to(String path) {
        return HttpRequest.newBuilder(URI.create(url + path)).header("Authorization", key);
    }

    static String get(String path) throws Exception {
        var answer = HTTP.send(to(path).build(), BodyHandlers.ofString());
        if (answer.statusCode() != 200) throw new AssertionError(answer.statusCode() + " " + answer.body());
        return answer.body();
    }
}
